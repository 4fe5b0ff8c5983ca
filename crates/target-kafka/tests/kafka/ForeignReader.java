import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.debezium.data.Envelope;
import io.debezium.data.VariableScaleDecimal;
import io.debezium.serde.DebeziumSerdes;
import io.debezium.time.ZonedTimestamp;
import io.debezium.transforms.ExtractNewRecordState;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalDate;
import java.time.LocalTime;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.Collection;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.connect.data.ConnectSchema;
import org.apache.kafka.connect.data.Field;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaAndValue;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.json.JsonConverter;
import org.apache.kafka.connect.sink.SinkRecord;

/**
 * Reads a topic as a consumer of Debezium's records does, with other people's classes only, and prints what they understood: a JSON
 * object per record. Every value is printed as text, after the class that belongs to its type has made a value of it.
 *
 * With schemas: Kafka Connect's JsonConverter, then Debezium's ExtractNewRecordState. Without: Debezium's payload serde.
 */
public class ForeignReader {
    private static final JsonNodeFactory NODES = JsonNodeFactory.instance;
    private static final long WAIT_MS_MAX = 30_000;

    public static void main(String[] arguments) throws Exception {
        String servers = arguments[0], form = arguments[1], topic = arguments[2];
        Reading reading = form.equals("schemas") ? new WithSchemas(topic) : new WithoutSchemas(topic);
        Map<String, Object> settings = Map.of("bootstrap.servers", servers, "isolation.level", "read_committed",
            "key.deserializer", ByteArrayDeserializer.class, "value.deserializer", ByteArrayDeserializer.class);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings)) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                .map(known -> new TopicPartition(topic, known.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            long until = System.currentTimeMillis() + WAIT_MS_MAX;
            while (partitions.stream().anyMatch(partition -> consumer.position(partition) < ends.get(partition))) {
                if (System.currentTimeMillis() > until) {
                    throw new IllegalStateException("the topic's end is not reached in time");
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    ObjectNode line = NODES.objectNode();
                    line.put("partition", record.partition());
                    line.put("offset", record.offset());
                    ObjectNode headers = line.putObject("headers");
                    record.headers().forEach(header ->
                        headers.put(header.key(), new String(header.value(), StandardCharsets.UTF_8)));
                    reading.read(record, line);
                    System.out.println(line);
                }
            }
        }
    }

    interface Reading {
        void read(ConsumerRecord<byte[], byte[]> record, ObjectNode line) throws Exception;
    }

    static class WithSchemas implements Reading {
        private final String topic;
        private final JsonConverter keys = new JsonConverter(), values = new JsonConverter();
        private final ExtractNewRecordState<SinkRecord> flattening = new ExtractNewRecordState<>();

        WithSchemas(String topic) {
            this.topic = topic;
            keys.configure(Map.of("schemas.enable", "true"), true);
            values.configure(Map.of("schemas.enable", "true"), false);
            flattening.configure(Map.of("delete.tombstone.handling.mode", "rewrite-with-tombstone",
                "add.fields", "op,source.lsn,source.sequence,source.txId,source.ts_ms,source.snapshot,source.table"));
        }

        public void read(ConsumerRecord<byte[], byte[]> record, ObjectNode line) {
            SchemaAndValue key = keys.toConnectData(topic, record.headers(), record.key());
            SchemaAndValue value = values.toConnectData(topic, record.headers(), record.value());
            for (SchemaAndValue part : List.of(key, value)) {
                if (part.schema() != null) {
                    ConnectSchema.validateValue(part.schema(), part.value());
                }
            }
            line.set("key", shown(key.schema(), key.value()));
            line.set("value", shown(value.schema(), value.value()));
            if (value.schema() != null) {
                line.put("envelope", Envelope.isEnvelopeSchema(value.schema()));
                String op = ((Struct) value.value()).getString(Envelope.FieldName.OPERATION);
                line.put("operation", Envelope.Operation.forCode(op).name());
            }
            SinkRecord whole = new SinkRecord(topic, record.partition(), key.schema(), key.value(), value.schema(),
                value.value(), record.offset(), record.timestamp(), TimestampType.CREATE_TIME);
            SinkRecord flat = flattening.apply(whole);
            line.put("dropped", flat == null);
            line.set("flat", flat == null ? NODES.nullNode() : shown(flat.valueSchema(), flat.value()));
        }
    }

    /** What the row's JSON holds, by the types that its owner would give it. */
    public static class Row {
        public Long id;
        public Boolean flag;
        public Short small;
        public Integer amount;
        public Long large, counter;
        public Float share;
        public Double ratio;
        public byte[] price, total;
        public Variable exact;
        public String name, code, document, binary_document, mood, address, span;
        public byte[] payload;
        public Integer day, clock_ms;
        public Long clock, made_ms, made_at;
        public String happened_at, token;
        public List<Integer> numbers;
        public List<String> words;
        public List<byte[]> prices;
    }

    public static class Variable {
        public int scale;
        public byte[] value;
    }

    static class WithoutSchemas implements Reading {
        private final String topic;
        private final Serde<Long> keys = DebeziumSerdes.payloadJson(Long.class);
        private final Serde<Row> before = DebeziumSerdes.payloadJson(Row.class), after = DebeziumSerdes.payloadJson(Row.class);
        private final ObjectMapper mapper = new ObjectMapper();

        WithoutSchemas(String topic) {
            this.topic = topic;
            keys.configure(Map.of(), true);
            before.configure(Map.of("from.field", "before"), false);
            after.configure(Map.of("from.field", "after"), false);
        }

        public void read(ConsumerRecord<byte[], byte[]> record, ObjectNode line) throws Exception {
            Long key = record.key() == null ? null : keys.deserializer().deserialize(topic, record.key());
            line.put("key", key == null ? null : key.toString());
            line.set("before", row(before.deserializer().deserialize(topic, record.value())));
            line.set("after", row(after.deserializer().deserialize(topic, record.value())));
            JsonNode value = record.value() == null ? NODES.nullNode() : mapper.readTree(record.value());
            line.set("op", value.path("op"));
            line.set("source", value.path("source"));
        }

        private static JsonNode row(Row row) {
            if (row == null) {
                return NODES.nullNode();
            }
            ObjectNode out = NODES.objectNode();
            for (java.lang.reflect.Field field : Row.class.getFields()) {
                try {
                    out.set(field.getName(), plain(field.getName(), field.get(row)));
                } catch (IllegalAccessException failure) {
                    throw new IllegalStateException(failure);
                }
            }
            return out;
        }

        private static JsonNode plain(String name, Object value) {
            if (value == null) {
                return NODES.nullNode();
            }
            if (value instanceof List<?> list) {
                ArrayNode out = NODES.arrayNode();
                list.forEach(element -> out.add(plain(name, element)));
                return out;
            }
            return NODES.textNode(switch (name) {
                case "price", "prices" -> decimal(value, 2);
                case "total" -> decimal(value, 10);
                case "exact" -> decimal(((Variable) value).value, ((Variable) value).scale);
                case "payload" -> HexFormat.of().formatHex((byte[]) value);
                case "day" -> LocalDate.ofEpochDay((Integer) value).toString();
                case "clock_ms" -> LocalTime.ofNanoOfDay((Integer) value * 1_000_000L).toString();
                case "clock" -> LocalTime.ofNanoOfDay((Long) value * 1_000).toString();
                case "made_ms" -> instant((Long) value * 1_000);
                case "made_at" -> instant((Long) value);
                case "happened_at" -> zoned((String) value);
                case "token" -> UUID.fromString((String) value).toString();
                default -> value.toString();
            });
        }

        private static String decimal(Object bytes, int scale) {
            return new BigDecimal(new BigInteger((byte[]) bytes), scale).toPlainString();
        }
    }

    /** A value as text, by the class that belongs to its schema. */
    static JsonNode shown(Schema schema, Object value) {
        if (value == null) {
            return NODES.nullNode();
        }
        if (schema.name() != null) {
            String text = semantic(schema, value);
            if (text != null) {
                return NODES.textNode(text);
            }
        }
        if (value instanceof Struct struct) {
            ObjectNode out = NODES.objectNode();
            for (Field field : schema.fields()) {
                out.set(field.name(), shown(field.schema(), struct.get(field)));
            }
            return out;
        }
        if (value instanceof Collection<?> elements) {
            ArrayNode out = NODES.arrayNode();
            elements.forEach(element -> out.add(shown(schema.valueSchema(), element)));
            return out;
        }
        if (value instanceof byte[] bytes) {
            return NODES.textNode(HexFormat.of().formatHex(bytes));
        }
        if (value instanceof ByteBuffer buffer) {
            byte[] bytes = new byte[buffer.remaining()];
            buffer.duplicate().get(bytes);
            return NODES.textNode(HexFormat.of().formatHex(bytes));
        }
        return NODES.textNode(value.toString());
    }

    /** By the names of the semantic types; nothing for others. */
    private static String semantic(Schema schema, Object value) {
        return switch (schema.name()) {
            case "org.apache.kafka.connect.data.Decimal" -> ((BigDecimal) value).toPlainString();
            case "org.apache.kafka.connect.data.Time", "org.apache.kafka.connect.data.Timestamp" ->
                ((java.util.Date) value).toInstant().toString();
            case VariableScaleDecimal.LOGICAL_NAME ->
                VariableScaleDecimal.toLogical((Struct) value).getDecimalValue().orElseThrow().toPlainString();
            case "io.debezium.time.Date" -> LocalDate.ofEpochDay((Integer) value).toString();
            case "io.debezium.time.Time" -> LocalTime.ofNanoOfDay((Integer) value * 1_000_000L).toString();
            case "io.debezium.time.MicroTime" -> LocalTime.ofNanoOfDay((Long) value * 1_000).toString();
            case "io.debezium.time.Timestamp" -> instant((Long) value * 1_000);
            case "io.debezium.time.MicroTimestamp" -> instant((Long) value);
            case "io.debezium.time.ZonedTimestamp" -> zoned((String) value);
            case "io.debezium.data.Uuid" -> UUID.fromString((String) value).toString();
            case "io.debezium.data.Json" -> tree((String) value);
            default -> null;
        };
    }

    private static String tree(String text) {
        try {
            new ObjectMapper().readTree(text);
            return text;
        } catch (java.io.IOException failure) {
            throw new IllegalStateException("it is no JSON", failure);
        }
    }

    private static String instant(long micros) {
        return Instant.ofEpochSecond(Math.floorDiv(micros, 1_000_000L), Math.floorMod(micros, 1_000_000L) * 1_000).toString();
    }

    private static String zoned(String text) {
        return OffsetDateTime.parse(text, ZonedTimestamp.FORMATTER).withOffsetSameInstant(ZoneOffset.UTC).toInstant().toString();
    }
}
