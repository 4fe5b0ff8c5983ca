//! The target's error codes.

use pgferry_model::Code;

/// The server does not answer, or its storage does not.
pub const UNREACHABLE: Code = Code::new("target.databend_unreachable");
/// The server does not let the user in.
pub const AUTHENTICATION: Code = Code::new("target.databend_authentication");
/// What the task file says of the connection cannot be used.
pub const SETTINGS: Code = Code::new("target.databend_settings");
/// The user may not do something.
pub const DENIED: Code = Code::new("target.databend_denied");
/// Another writer changed the same table at the same time.
pub const CONFLICT: Code = Code::new("target.databend_conflict");
/// No warehouse runs the statements.
pub const NO_WAREHOUSE: Code = Code::new("target.databend_no_warehouse");
/// Another error of the server.
pub const REFUSED: Code = Code::new("target.databend_refused");
/// Changes are staged that are not merged yet.
pub const UNMERGED: Code = Code::new("target.databend_unmerged");
