"""Copies a table with DuckDB's own extension for PostgreSQL into a DuckDB file: host port database table file."""

import pathlib
import sys

import duckdb
import duckdb_extension_postgres_scanner as packed

host, port, database, table, file = sys.argv[1:]
extension = next(pathlib.Path(packed.__path__[0]).rglob("postgres_scanner.duckdb_extension"))
connection = duckdb.connect(file, config={"autoinstall_known_extensions": "false", "memory_limit": "1GB"})
connection.execute(f"LOAD '{extension}'")
connection.execute(f"ATTACH 'host={host} port={port} dbname={database} user=postgres' AS source (TYPE postgres, READ_ONLY)")
connection.execute(f"CREATE TABLE {table} AS SELECT * FROM source.public.{table}")
rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
connection.execute("DETACH source")
connection.execute("CHECKPOINT")
connection.close()
print(f"rows={rows} duckdb={duckdb.__version__}")
