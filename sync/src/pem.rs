//! PEM: taken apart and written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

/// One block, wiped when dropped: it may be a key.
pub(crate) struct Block {
    pub(crate) kind: SectionKind,
    pub(crate) der: Zeroizing<Vec<u8>>,
}

/// Whether there is a block of any kind.
pub(crate) fn is_pem(text: &[u8]) -> bool {
    holds(text, b"-----BEGIN ")
}

/// Whether a key is locked with a passphrase, in one of the two ways that PEM has for it.
pub(crate) fn is_locked(text: &[u8]) -> bool {
    holds(text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds(text, b"Proc-Type: 4,ENCRYPTED")
}

/// Every block of a kind that is known, in order; `None` where one is not whole.
pub(crate) fn blocks(text: &[u8]) -> Option<Vec<Block>> {
    let blocks = <(SectionKind, Vec<u8>)>::pem_slice_iter(text);
    // The errors quote lines: they end here.
    blocks
        .map(|block| {
            let (kind, der) = block.ok()?;
            let der = Zeroizing::new(der);
            Some(Block { kind, der })
        })
        .collect()
}

/// Appends one block.
pub(crate) fn write(text: &mut Zeroizing<Vec<u8>>, label: &str, der: &[u8]) {
    let body = Zeroizing::new(STANDARD.encode(der));
    // As large as it becomes: growing would leave copies behind.
    text.reserve(body.len() + body.len() / 64 + 2 * label.len() + 40);
    text.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for line in body.as_bytes().chunks(64) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
