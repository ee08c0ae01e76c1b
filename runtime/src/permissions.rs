//! What a module may touch outside its isolate: what it asks for, within what the operator allows.
//! Everything is denied by default; a denial names the line to add to the module.

/// What the operator allows modules to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allow {
    /// Whether `net: ["*"]` is granted when a module asks for it.
    pub net_any: bool,
    /// Whether private, loopback and link-local addresses may be named in `net`.
    pub net_private: bool,
    /// Directories that no module may read, whatever it names: the store's own files.
    pub read_denied: Vec<std::path::PathBuf>,
}

impl Default for Allow {
    fn default() -> Self {
        Self { net_any: false, net_private: false, read_denied: Vec::new() }
    }
}
