//! The kernel proper out of a bzImage: booted directly, it saves the boot loader's work and its own decompression.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Where the boot protocol (Documentation/arch/x86/boot.rst) keeps what we need.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Compressions by how they begin, and what takes them away.
const COMPRESSIONS: [(&[u8], &str); 6] = [
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    (&[0x1f, 0x8b], "gzip"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0, 0], "lzma"),
];

/// The ELF file in a bzImage; one that is an ELF file already is returned as it is.
pub fn extract(image: &[u8]) -> Result<Vec<u8>> {
    if image.starts_with(b"\x7fELF") {
        return Ok(image.to_vec());
    }
    let payload = payload(image).context("this is no bzImage")?;
    let Some((_, program)) = COMPRESSIONS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
    else {
        bail!("the kernel is compressed in a way that is not known");
    };
    // The size of the content follows the compressed data; programs complain of it when they are through.
    let mut decompress = Command::new(program);
    decompress.args(["-d", "-c"]);
    let content = command::filtered(&mut decompress, payload)?;
    if !content.starts_with(b"\x7fELF") {
        bail!("{program} did not find a kernel in it");
    }
    Ok(content)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let setup = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let begin = setup.checked_add(word(PAYLOAD_OFFSET)?)?;
    image.get(begin..begin.checked_add(word(PAYLOAD_LENGTH)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with a payload and the word that follows it.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len() + 4).expect("a short payload");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(&[9, 9, 9, 9]);
        image
    }

    #[test]
    fn the_kernel_is_found_in_its_wrapping() {
        let kernel = b"\x7fELF and so on";
        let compressed = command::filtered(Command::new("gzip").arg("-c"), kernel)
            .expect("gzip is on every machine");
        assert_eq!(extract(&image(&compressed)).expect("a kernel"), kernel);
        assert_eq!(extract(kernel).expect("a kernel"), kernel);
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for (bytes, reason) in [
            (b"MZ".to_vec(), "no bzImage"),
            (image(b"no compression at all"), "not known"),
            (image(&[0x1f, 0x8b, 1, 2, 3]), "did not find"),
        ] {
            let error = extract(&bytes).expect_err("no kernel");
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
