//! Several nodes, each broker and controller, that hold copies of each other's partitions.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::settings::{Place, Ports, Setup};
use super::{Broker, NotInstalled, PORTS_TRIED, jars, node, settings, version};

/// A running cluster of [`version`]. A majority of its nodes has to run.
#[derive(Clone, Debug)]
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts a cluster; topics have three copies by default, or as many as there are nodes.
    ///
    /// # Errors
    /// When it does not answer in time; the end of a node's log is told.
    pub fn start(nodes: usize) -> Result<std::result::Result<Cluster, NotInstalled>> {
        let version = version();
        if settings::is_old(version) {
            return Ok(Err(NotInstalled(format!("Apache Kafka {version} is run as a single node"))));
        }
        let jars = match jars(version)? {
            Ok(jars) => jars,
            Err(missing) => return Ok(Err(missing)),
        };
        for attempt in 1.. {
            let ports: Vec<Ports> = (0..nodes).map(|_| node::free_ports()).collect::<Result<_>>()?;
            let mut all = Vec::with_capacity(nodes);
            for number in 1..=nodes {
                let (folder, certificates) = node::folder()?;
                let place = Place { version, folder: &folder, node: number, ports: &ports };
                let setup = Setup::default();
                settings::write(&place, &setup)?;
                all.push(Broker::of(&place, &jars, Arc::new(certificates), &setup));
            }
            let cluster = Cluster { nodes: all };
            match cluster.await_all() {
                Ok(()) => return Ok(Ok(cluster)),
                Err(_) if attempt < PORTS_TRIED && cluster.has_lost_a_port() => {}
                Err(error) => return Err(error),
            }
        }
        bail!("no port is free")
    }

    fn await_all(&self) -> Result<()> {
        // None answers before a majority runs.
        self.nodes.iter().try_for_each(Broker::begin)?;
        self.nodes.iter().try_for_each(Broker::await_started)
    }

    fn has_lost_a_port(&self) -> bool {
        self.nodes.iter().any(|node| node.log().contains("Address already in use"))
    }

    /// What clients connect to.
    pub fn bootstrap_servers(&self) -> String {
        self.nodes.iter().map(Broker::bootstrap_servers).collect::<Vec<_>>().join(",")
    }

    /// A node by its number, from 1 on.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn node(&self, number: i32) -> Result<&Broker> {
        let at = usize::try_from(number - 1).ok();
        at.and_then(|at| self.nodes.get(at)).with_context(|| format!("there is no node {number}"))
    }
}
