//! Records in Avro, read back as the JSON that the other formats have.

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgferry_model::Result;
use serde_json::{Map, Value};

use crate::schema_registry::SchemaRegistry;

/// A value with the schema's id before it; `None`: it is not in that form.
pub(super) fn decoded(registry: &SchemaRegistry, value: &[u8]) -> Result<Option<Value>> {
    let Some((&[0, a, b, c, d], mut data)) = value.split_first_chunk::<5>() else { return Ok(None) };
    let schema = registry.schema(u32::from_be_bytes([a, b, c, d]))?;
    let reader = GenericDatumReader::builder(&schema).build().ok();
    Ok(reader.and_then(|reader| reader.read_value(&mut data).ok()).and_then(json))
}

fn float(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "NaN".into(),
        None => (if value > 0.0 { "Infinity" } else { "-Infinity" }).into(),
    }
}

fn json(value: Avro) -> Option<Value> {
    Some(match value {
        Avro::Null => Value::Null,
        Avro::Boolean(value) => value.into(),
        Avro::Int(value) | Avro::TimeMillis(value) => value.into(),
        Avro::Long(value) | Avro::TimestampMillis(value) => value.into(),
        Avro::Float(value) => float(value.into()),
        Avro::Double(value) => float(value),
        Avro::Bytes(value) => STANDARD.encode(value).into(),
        Avro::Decimal(value) => STANDARD.encode(Vec::<u8>::try_from(&value).ok()?).into(),
        Avro::String(value) => value.into(),
        Avro::Union(_, value) => json(*value)?,
        Avro::Array(values) => Value::Array(values.into_iter().map(json).collect::<Option<_>>()?),
        Avro::Record(fields) => {
            let fields = fields.into_iter().map(|(name, value)| Some((name, json(value)?)));
            Value::Object(fields.collect::<Option<Map<String, Value>>>()?)
        }
        _ => return None,
    })
}
