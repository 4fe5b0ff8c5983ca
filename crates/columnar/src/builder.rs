//! One builder per encoding: takes cells in either form, gives an array.

use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, BooleanBufferBuilder, FixedSizeBinaryArray, GenericByteArray,
    NullBufferBuilder, OffsetSizeTrait, PrimitiveArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ByteArrayType, Date32Type, Decimal128Type, Float32Type, Float64Type, GenericBinaryType, GenericStringType,
    Int16Type, Int32Type, Int64Type, Time64MicrosecondType, TimestampMicrosecondType, UInt32Type,
};
use pgferry_model::TypeKind;

use crate::encoding::Reason;
use crate::text::Parsed;
use crate::{Encoding, binary, format, text};

/// Takes a column's values one after the other.
pub(crate) trait ValueBuilder {
    fn push_null(&mut self);
    fn push_text(&mut self, bytes: &[u8]) -> Parsed<()>;
    fn push_binary(&mut self, bytes: &[u8]) -> Parsed<()>;
    fn finish(self: Box<Self>) -> Parsed<ArrayRef>;
}

/// A type of fixed width: how its two forms are read.
pub(crate) trait Scalar {
    type Arrow: ArrowPrimitiveType;
    fn text(&self, bytes: &[u8]) -> Parsed<<Self::Arrow as ArrowPrimitiveType>::Native>;
    fn binary(&self, bytes: &[u8]) -> Parsed<<Self::Arrow as ArrowPrimitiveType>::Native>;
}

macro_rules! scalar {
    ($name:ident, $arrow:ty, $text:expr, $binary:expr) => {
        pub(crate) struct $name;
        impl Scalar for $name {
            type Arrow = $arrow;
            #[inline]
            fn text(&self, bytes: &[u8]) -> Parsed<<$arrow as ArrowPrimitiveType>::Native> {
                $text(bytes)
            }
            #[inline]
            fn binary(&self, bytes: &[u8]) -> Parsed<<$arrow as ArrowPrimitiveType>::Native> {
                $binary(bytes)
            }
        }
    };
}

scalar!(Int2, Int16Type, text::integer, |bytes| binary::exactly(bytes).map(i16::from_be_bytes));
scalar!(Int4, Int32Type, text::integer, |bytes| binary::exactly(bytes).map(i32::from_be_bytes));
scalar!(Int8, Int64Type, text::integer, |bytes| binary::exactly(bytes).map(i64::from_be_bytes));
scalar!(Oid, UInt32Type, text::integer, |bytes| binary::exactly(bytes).map(u32::from_be_bytes));
scalar!(Float4, Float32Type, text::float4, |bytes| binary::exactly(bytes).map(f32::from_be_bytes));
scalar!(Float8, Float64Type, text::float8, |bytes| binary::exactly(bytes).map(f64::from_be_bytes));
scalar!(Date, Date32Type, text::date, binary::date);
scalar!(Time, Time64MicrosecondType, text::time, binary::time);
scalar!(Timestamp, TimestampMicrosecondType, text::timestamp, binary::timestamp);

pub(crate) struct Numeric {
    pub(crate) precision: u8,
    pub(crate) scale: u8,
}

impl Scalar for Numeric {
    type Arrow = Decimal128Type;
    #[inline]
    fn text(&self, bytes: &[u8]) -> Parsed<i128> {
        text::decimal(bytes, self.precision, self.scale)
    }
    #[inline]
    fn binary(&self, bytes: &[u8]) -> Parsed<i128> {
        binary::decimal(bytes, self.precision, self.scale)
    }
}

pub(crate) struct FixedWidth<S: Scalar> {
    kind: S,
    encoding: Encoding,
    values: Vec<<S::Arrow as ArrowPrimitiveType>::Native>,
    nulls: NullBufferBuilder,
}

impl<S: Scalar> FixedWidth<S> {
    pub(crate) fn new(kind: S, encoding: &Encoding, rows: usize) -> Self {
        let (values, nulls) = (Vec::with_capacity(rows), NullBufferBuilder::new(rows));
        FixedWidth { kind, encoding: encoding.clone(), values, nulls }
    }

    #[inline]
    fn push(&mut self, value: <S::Arrow as ArrowPrimitiveType>::Native) {
        self.values.push(value);
        self.nulls.append_non_null();
    }
}

impl<S: Scalar> ValueBuilder for FixedWidth<S> {
    #[inline]
    fn push_null(&mut self) {
        self.values.push(Default::default());
        self.nulls.append_null();
    }

    #[inline]
    fn push_text(&mut self, bytes: &[u8]) -> Parsed<()> {
        let value = self.kind.text(bytes)?;
        self.push(value);
        Ok(())
    }

    #[inline]
    fn push_binary(&mut self, bytes: &[u8]) -> Parsed<()> {
        let value = self.kind.binary(bytes)?;
        self.push(value);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Parsed<ArrayRef> {
        let array = PrimitiveArray::<S::Arrow>::new(ScalarBuffer::from(self.values), self.nulls.finish());
        Ok(Arc::new(array.with_data_type(self.encoding.data_type())))
    }
}

pub(crate) struct Bool {
    values: BooleanBufferBuilder,
    nulls: NullBufferBuilder,
}

impl Bool {
    pub(crate) fn new(rows: usize) -> Self {
        Bool { values: BooleanBufferBuilder::new(rows), nulls: NullBufferBuilder::new(rows) }
    }

    fn push(&mut self, value: bool) {
        self.values.append(value);
        self.nulls.append_non_null();
    }
}

impl ValueBuilder for Bool {
    fn push_null(&mut self) {
        self.values.append(false);
        self.nulls.append_null();
    }

    fn push_text(&mut self, bytes: &[u8]) -> Parsed<()> {
        text::boolean(bytes).map(|value| self.push(value))
    }

    fn push_binary(&mut self, bytes: &[u8]) -> Parsed<()> {
        binary::boolean(bytes).map(|value| self.push(value))
    }

    fn finish(mut self: Box<Self>) -> Parsed<ArrayRef> {
        Ok(Arc::new(BooleanArray::new(self.values.finish(), self.nulls.finish())))
    }
}

pub(crate) struct Uuid {
    values: Vec<u8>,
    nulls: NullBufferBuilder,
}

impl Uuid {
    pub(crate) fn new(rows: usize) -> Self {
        Uuid { values: Vec::with_capacity(rows * 16), nulls: NullBufferBuilder::new(rows) }
    }

    fn push(&mut self, value: [u8; 16]) {
        self.values.extend_from_slice(&value);
        self.nulls.append_non_null();
    }
}

impl ValueBuilder for Uuid {
    fn push_null(&mut self) {
        self.values.extend_from_slice(&[0; 16]);
        self.nulls.append_null();
    }

    fn push_text(&mut self, bytes: &[u8]) -> Parsed<()> {
        text::uuid(bytes).map(|value| self.push(value))
    }

    fn push_binary(&mut self, bytes: &[u8]) -> Parsed<()> {
        binary::exactly(bytes).map(|value| self.push(value))
    }

    fn finish(mut self: Box<Self>) -> Parsed<ArrayRef> {
        let values = Buffer::from_vec(self.values);
        let array = FixedSizeBinaryArray::try_new(16, values, self.nulls.finish()).map_err(|_| Reason::Malformed)?;
        Ok(Arc::new(array))
    }
}

/// How a value's bytes are appended to the column's bytes.
pub(crate) trait Bytes {
    type Arrow<O: OffsetSizeTrait>: ByteArrayType<Offset = O>;
    fn text(&self, bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()>;
    fn binary(&self, bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()>;
}

/// Text: the source's text form. A binary form is turned into it by its type.
pub(crate) struct SourceText(pub(crate) TypeKind);

impl Bytes for SourceText {
    type Arrow<O: OffsetSizeTrait> = GenericStringType<O>;

    #[inline]
    fn text(&self, bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
        out.extend_from_slice(bytes);
        Ok(())
    }

    fn binary(&self, bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
        use binary::exactly;
        match &self.0 {
            TypeKind::Text | TypeKind::FixedText | TypeKind::Json | TypeKind::Xml | TypeKind::Enum => {
                out.extend_from_slice(bytes);
            }
            TypeKind::Jsonb => out.extend_from_slice(binary::jsonb(bytes)?),
            TypeKind::Bool => format::boolean(binary::boolean(bytes)?, out),
            TypeKind::Int2 => format::integer(i16::from_be_bytes(exactly(bytes)?), out),
            TypeKind::Int4 => format::integer(i32::from_be_bytes(exactly(bytes)?), out),
            TypeKind::Int8 => format::integer(i64::from_be_bytes(exactly(bytes)?), out),
            TypeKind::Oid => format::integer(u32::from_be_bytes(exactly(bytes)?), out),
            TypeKind::Float4 => format::float4(f32::from_be_bytes(exactly(bytes)?), out),
            TypeKind::Float8 => format::float8(f64::from_be_bytes(exactly(bytes)?), out),
            TypeKind::Numeric { .. } => binary::NumericForm::read(bytes)?.write_text(out)?,
            TypeKind::Bytes => format::bytea(bytes, out),
            TypeKind::Date => format::date(binary::date(bytes)?, out),
            TypeKind::Time => format::time(binary::time(bytes)?, out),
            TypeKind::Timestamp => format::timestamp(binary::timestamp(bytes)?, false, out),
            TypeKind::TimestampTz => format::timestamp(binary::timestamp(bytes)?, true, out),
            TypeKind::Uuid => format::uuid(&exactly::<16>(bytes)?, out),
            _ => return Err(Reason::NoTextForm),
        }
        Ok(())
    }
}

/// `bytea`.
pub(crate) struct Bytea;

impl Bytes for Bytea {
    type Arrow<O: OffsetSizeTrait> = GenericBinaryType<O>;

    fn text(&self, bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
        text::bytea(bytes, out)
    }

    #[inline]
    fn binary(&self, bytes: &[u8], out: &mut Vec<u8>) -> Parsed<()> {
        out.extend_from_slice(bytes);
        Ok(())
    }
}

pub(crate) struct VariableWidth<B: Bytes, O: OffsetSizeTrait> {
    kind: B,
    offsets: Vec<O>,
    values: Vec<u8>,
    nulls: NullBufferBuilder,
    offset: PhantomData<O>,
}

impl<B: Bytes, O: OffsetSizeTrait> VariableWidth<B, O> {
    pub(crate) fn new(kind: B, rows: usize, bytes: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(O::usize_as(0));
        let (values, nulls) = (Vec::with_capacity(bytes), NullBufferBuilder::new(rows));
        VariableWidth { kind, offsets, values, nulls, offset: PhantomData }
    }

    #[inline]
    fn close_value(&mut self) -> Parsed<()> {
        self.offsets.push(O::from_usize(self.values.len()).ok_or(Reason::OutOfRange)?);
        self.nulls.append_non_null();
        Ok(())
    }
}

impl<B: Bytes, O: OffsetSizeTrait> ValueBuilder for VariableWidth<B, O> {
    #[inline]
    fn push_null(&mut self) {
        self.offsets.push(O::usize_as(self.values.len()));
        self.nulls.append_null();
    }

    #[inline]
    fn push_text(&mut self, bytes: &[u8]) -> Parsed<()> {
        self.kind.text(bytes, &mut self.values)?;
        self.close_value()
    }

    #[inline]
    fn push_binary(&mut self, bytes: &[u8]) -> Parsed<()> {
        self.kind.binary(bytes, &mut self.values)?;
        self.close_value()
    }

    fn finish(mut self: Box<Self>) -> Parsed<ArrayRef> {
        // Arrow checks the whole column's bytes at once: one pass, and every value starts and ends at a character.
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        let values = Buffer::from_vec(self.values);
        let array = GenericByteArray::<B::Arrow<O>>::try_new(offsets, values, self.nulls.finish())
            .map_err(|_| Reason::NotUtf8)?;
        Ok(Arc::new(array))
    }
}
