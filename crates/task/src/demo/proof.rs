//! The end of the demo: both sides at rest, compared table by table, and a question answered from the copy alone.

use std::collections::HashMap;

use pgferry_model::{Error, Result, Table, TableName};
use pgferry_pipeline::Target;

use super::server::retry;
use super::{DemoServer, SERVER_FAILED};
use crate::compare::{Compared, compare};
use crate::registry;
use crate::spec::Spec;

/// A product and what it brought in, in cents.
#[derive(Debug, PartialEq, Eq)]
pub struct Seller {
    /// The product's name.
    pub product: String,
    /// Pieces sold.
    pub pieces: i64,
    /// Turnover in cents.
    pub cents: i64,
}

/// What the target holds.
#[derive(Debug)]
pub struct Proof {
    /// Each table, compared.
    pub tables: Vec<(TableName, Compared)>,
    /// The products that sold best, read from the target.
    pub sellers: Vec<Seller>,
}

/// Compares every table of the demo's task, and asks the target which products sold best.
pub async fn prove(server: &DemoServer, spec: &Spec, best: usize) -> Result<Proof> {
    let task = spec.tasks.first().ok_or_else(|| {
        Error::task_broken(SERVER_FAILED, "the demo has no task")
            .with_cause("a mistake in pgferry")
            .with_cure(retry())
    })?;
    let tables = registry::source(spec, task)?.tables().await?;
    let target = registry::target(spec, task).await?;
    let connection = server.connection("shop");
    let mut compared = Vec::new();
    for table in &tables {
        let sides = compare(&connection, target.inspect(), table).await?;
        compared.push((table.name.clone(), sides));
    }
    let named = |name: &str| tables.iter().find(|table| table.name.name.as_ref() == name);
    let sellers = match (named("products"), named("order_items")) {
        (Some(products), Some(items)) => sellers(target.as_ref(), products, items, best).await?,
        _ => Vec::new(),
    };
    target.close().await?;
    Ok(Proof { tables: compared, sellers })
}

async fn sellers(target: &dyn Target, products: &Table, items: &Table, best: usize) -> Result<Vec<Seller>> {
    let mut names: HashMap<String, String> = HashMap::new();
    let (id, name) = (place(products, "id"), place(products, "name"));
    let mut each = |mut row: Vec<Option<String>>| {
        if let (Some(Some(id)), Some(name)) = (row.get(id).cloned(), row.get_mut(name).and_then(Option::take))
        {
            names.insert(id, name);
        }
        Ok(())
    };
    target.inspect().rows(products, None, &mut each).await?;
    let mut sold: HashMap<String, (i64, i64)> = HashMap::new();
    let (product, quantity, price) =
        (place(items, "product_id"), place(items, "quantity"), place(items, "price"));
    let mut each = |row: Vec<Option<String>>| {
        let cell = |place: usize| row.get(place).cloned().flatten().unwrap_or_default();
        let pieces: i64 = cell(quantity).parse().unwrap_or(0);
        let cents: i64 = cell(price).replace('.', "").parse().unwrap_or(0);
        let entry = sold.entry(cell(product)).or_default();
        *entry = (entry.0 + pieces, entry.1 + pieces * cents);
        Ok(())
    };
    target.inspect().rows(items, None, &mut each).await?;
    let mut sellers: Vec<Seller> = sold
        .into_iter()
        .map(|(id, (pieces, cents))| Seller { product: names.get(&id).cloned().unwrap_or(id), pieces, cents })
        .collect();
    sellers.sort_by(|a, b| b.cents.cmp(&a.cents).then_with(|| a.product.cmp(&b.product)));
    sellers.truncate(best);
    Ok(sellers)
}

fn place(table: &Table, column: &str) -> usize {
    table.columns.iter().position(|known| known.name.as_ref() == column).unwrap_or(usize::MAX)
}
