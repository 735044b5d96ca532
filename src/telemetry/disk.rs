//! The room that is left on a disk.

use std::path::Path;

/// Bytes that a program without privileges may still write below a folder.
///
/// # Errors
/// The folder cannot be looked at.
pub fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(folder)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_of_a_folder_is_known_and_that_of_none_is_not() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
        assert!(free_bytes(Path::new("/no/such/folder")).is_err());
    }
}
