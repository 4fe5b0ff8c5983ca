//! A certificate authority for one server, the server's certificate and certificates for its clients.
//!
//! Invariant: keys are readable by their owner only; PostgreSQL and its clients refuse any other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::installation::Installation;

/// The authority of one server, which names itself `localhost` and `127.0.0.1`.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
    authority: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub(crate) fn write(installation: &Installation, data: &Path) -> Result<Self> {
        let made = Self::make(data)?;
        for name in ["ca.crt", "server.crt", "server.key"] {
            installation.give(&data.join(name))?;
        }
        Ok(made)
    }

    /// Makes `ca.crt`, `server.crt` and `server.key` in a server's folder, and a folder for its clients beside it.
    pub(crate) fn make(data: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "pgferry test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        fs::write(data.join("ca.crt"), params.self_signed(&key)?.pem())?;
        let authority = Issuer::new(params, key);
        let server_key = KeyPair::generate()?;
        let server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        fs::write(data.join("server.crt"), server.signed_by(&server_key, &authority)?.pem())?;
        let key_path = data.join("server.key");
        write_key(&key_path, &server_key)?;
        let folder = data.parent().unwrap_or(data).join("certificates");
        fs::create_dir(&folder)?;
        fs::copy(data.join("ca.crt"), folder.join("ca.crt"))?;
        Ok(Self { folder, authority })
    }

    /// The authority's certificate (PEM), for `sslrootcert`.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Makes a certificate and its key (PEM) for the database user `user`, for `sslcert` and `sslkey`.
    pub fn client(&self, user: &str) -> Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        let key = KeyPair::generate()?;
        let (certificate_path, key_path) =
            (self.folder.join(format!("{user}.crt")), self.folder.join(format!("{user}.key")));
        fs::write(&certificate_path, params.signed_by(&key, &self.authority)?.pem())?;
        write_key(&key_path, &key)?;
        Ok((certificate_path, key_path))
    }
}

fn write_key(path: &Path, key: &KeyPair) -> Result<()> {
    fs::write(path, key.serialize_pem())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}
