//! The types of the built-in module `xs` and a `tsconfig.json` for editors, kept up to date in the
//! modules directory. A convenience: failing to write them stops nothing.

use std::fs;
use std::io;
use std::path::Path;

/// The types of the built-in module.
pub const TYPES: &str = include_str!("../../xs.d.ts");
/// The first line of a `tsconfig.json` that we may overwrite.
const OURS: &str = "// Kept current by `xs serve`; delete this line to keep your own.\n";
/// The contents of that `tsconfig.json`.
const CONFIG: &str = r#"{
  "compilerOptions": {
    "target": "ES2024", "module": "ESNext", "moduleResolution": "Bundler",
    "lib": ["ES2024", "DOM", "DOM.Iterable", "DOM.AsyncIterable"], "types": [],
    "strict": true, "noEmit": true, "allowJs": true, "checkJs": true,
    "allowImportingTsExtensions": true, "resolveJsonModule": true, "skipLibCheck": true
  },
  "include": [".xs/xs.d.ts", "generators", "handlers", "commands", "lib"]
}
"#;

/// Writes `.xs/xs.d.ts` and `tsconfig.json` where they are missing, or ours and out of date.
///
/// # Errors
/// Any I/O error.
pub fn keep_current(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.join(".xs"))?;
    write_changed(&dir.join(".xs/xs.d.ts"), TYPES)?;
    let config = dir.join("tsconfig.json");
    match fs::read_to_string(&config) {
        Ok(text) if !text.starts_with(OURS) => Ok(()),
        Ok(_) => write_changed(&config, &format!("{OURS}{CONFIG}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_changed(&config, &format!("{OURS}{CONFIG}"))
        }
        Err(error) => Err(error),
    }
}

fn write_changed(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authors_own_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("tsconfig.json");
        keep_current(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(".xs/xs.d.ts")).unwrap(), TYPES);
        fs::write(&config, format!("{OURS}old")).unwrap();
        keep_current(dir.path()).unwrap();
        assert!(fs::read_to_string(&config).unwrap().contains("\"strict\": true"));
        fs::write(&config, "{}").unwrap();
        keep_current(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "{}");
    }
}
