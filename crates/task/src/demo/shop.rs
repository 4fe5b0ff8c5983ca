//! The demo's shop: four tables and carts, some 100,000 rows, with types that a copy can get wrong.

use pgferry_model::Result;
use pgferry_postgres::{ConnectionConfig, Purpose, Session};

/// The shop's tables, in the order in which they are shown.
pub const TABLES: [&str; 5] = ["customers", "products", "orders", "order_items", "carts"];

const CUSTOMERS: u32 = 10_000;
const PRODUCTS: u32 = 500;
const ORDERS: u32 = 30_000;
const CARTS: u32 = 2_000;

const SCHEMA: &str = "
CREATE TYPE public.order_status AS ENUM ('placed', 'paid', 'shipped', 'delivered', 'returned');
CREATE TABLE public.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, email text NOT NULL,
    city text, birthday date, joined timestamptz NOT NULL);
CREATE TABLE public.products (
    id integer PRIMARY KEY, name text NOT NULL, price numeric(10,2) NOT NULL, tags text[] NOT NULL,
    attributes jsonb NOT NULL, code uuid NOT NULL);
CREATE TABLE public.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id bigint NOT NULL, status public.order_status NOT NULL,
    placed timestamptz NOT NULL, note text);
CREATE TABLE public.order_items (
    order_id bigint NOT NULL, line smallint NOT NULL, product_id integer NOT NULL, quantity integer NOT NULL,
    price numeric(10,2) NOT NULL, PRIMARY KEY (order_id, line));
CREATE TABLE public.carts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id bigint NOT NULL, content jsonb NOT NULL,
    changed timestamp NOT NULL);
";

/// Makes the shop and fills it. Returns the number of rows.
pub async fn fill(connection: &ConnectionConfig) -> Result<u64> {
    let mut session = Session::connect(connection, Purpose::Query).await?;
    session.simple_query(SCHEMA).await?;
    session.simple_query(&rows()).await?;
    session.simple_query("ANALYZE").await?;
    let counts: Vec<String> =
        TABLES.iter().map(|table| format!("(SELECT count(*) FROM public.{table})")).collect();
    let counted = session.simple_query(&format!("SELECT {}", counts.join(" + "))).await?;
    session.close().await?;
    Ok(counted.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(0))
}

fn rows() -> String {
    format!(
        "INSERT INTO public.customers (name, email, city, birthday, joined)
         SELECT 'Customer ' || i, 'c' || i || '@example.com', (ARRAY['Köln', 'Łódź', 'Zürich', '大阪', NULL])[i % 5 + 1],
                DATE '1950-01-01' + i % 20000, TIMESTAMPTZ '2020-01-01' + i * INTERVAL '1 hour 7 seconds'
         FROM generate_series(1, {CUSTOMERS}) AS i;
         INSERT INTO public.products
         SELECT i, 'Product ' || i, (i * 37 % 9000 + 100) / 100.0, ARRAY['t' || i % 7, 'a \"b\", c'],
                jsonb_build_object('colour', (ARRAY['red', 'green', 'blue'])[i % 3 + 1], 'weight', i * 0.25, 'new', i % 2 = 0),
                md5(i::text)::uuid
         FROM generate_series(1, {PRODUCTS}) AS i;
         INSERT INTO public.orders (customer_id, status, placed, note)
         SELECT i * 7919 % {CUSTOMERS} + 1, (ARRAY['placed', 'paid', 'shipped', 'delivered']::public.order_status[])[i % 4 + 1],
                TIMESTAMPTZ '2024-01-01' + i * INTERVAL '17 minutes 1 microsecond',
                CASE WHEN i % 10 = 0 THEN E'ring twice\\nthen \\\"wait\\\"' END
         FROM generate_series(1, {ORDERS}) AS i;
         INSERT INTO public.order_items
         SELECT o.id, line, (o.id * 31 + line * 17) % {PRODUCTS} + 1, line % 3 + 1, p.price
         FROM public.orders AS o CROSS JOIN generate_series(1, 2) AS line
         JOIN public.products AS p ON p.id = (o.id * 31 + line * 17) % {PRODUCTS} + 1;
         INSERT INTO public.carts (customer_id, content, changed)
         SELECT i, jsonb_build_array(i % {PRODUCTS} + 1, i % 11 + 1), TIMESTAMP '2024-06-01' + i * INTERVAL '1 second'
         FROM generate_series(1, {CARTS}) AS i;"
    )
}
