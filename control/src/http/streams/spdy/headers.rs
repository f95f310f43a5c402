//! SPDY's header blocks: names and values, compressed by one zlib stream a direction that begins with a dictionary
//! (SPDY/3.1, 2.6.10).

use std::io;
use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Names and values.
pub type Headers = Vec<(String, String)>;

/// Bytes of a block, uncompressed.
const LONGEST: usize = 64 * 1024;
/// Bytes by which a buffer grows.
const STEP: usize = 1024;

/// The dictionary's words; each stands in it behind its length.
const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|\
    accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
    content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|\
    if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
    proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
    user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
    keep-alive|origin";
/// What follows them.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=\
    iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in WORDS.split('|') {
        put_text(&mut dictionary, word);
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

fn put_number(to: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("blocks are short");
    to.extend_from_slice(&number.to_be_bytes());
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    put_number(to, text.len());
    to.extend_from_slice(text.as_bytes());
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads the blocks of one direction, in their order.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The headers of the next block.
    pub fn read(&mut self, block: &[u8]) -> io::Result<Headers> {
        let text = self.inflate(block)?;
        parse(&text).ok_or_else(|| invalid("a header block is cut off"))
    }

    fn inflate(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut text = Vec::with_capacity(STEP);
        loop {
            if text.len() > LONGEST {
                return Err(invalid("a header block is too long"));
            }
            text.reserve(STEP);
            let (before, length) = (self.0.total_in(), text.len());
            let read = self
                .0
                .decompress_vec(block, &mut text, FlushDecompress::Sync);
            let used = usize::try_from(self.0.total_in() - before).map_err(invalid)?;
            block = block.get(used..).unwrap_or_default();
            match read {
                Ok(_) if block.is_empty() && text.len() < text.capacity() => return Ok(text),
                Ok(_) if used > 0 || text.len() > length => {}
                Ok(_) => return Err(invalid("a header block does not end")),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(invalid)?;
                }
                Err(error) => return Err(invalid(error)),
            }
        }
    }
}

fn parse(mut text: &[u8]) -> Option<Headers> {
    let count = take_number(&mut text)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = take_text(&mut text)?;
        headers.push((name, take_text(&mut text)?));
    }
    Some(headers)
}

fn take_number(text: &mut &[u8]) -> Option<usize> {
    let (number, rest) = text.split_first_chunk::<4>()?;
    *text = rest;
    usize::try_from(u32::from_be_bytes(*number)).ok()
}

fn take_text(text: &mut &[u8]) -> Option<String> {
    let length = take_number(text)?;
    let (taken, rest) = text.split_at_checked(length)?;
    *text = rest;
    Some(String::from_utf8_lossy(taken).into_owned())
}

/// Writes the blocks of one direction, in their order.
pub struct Deflater(Compress);

impl Deflater {
    /// For a new connection.
    pub fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).map_err(invalid)?;
        Ok(Self(compress))
    }

    /// The next block.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        put_number(&mut text, headers.len());
        for (name, value) in headers {
            put_text(&mut text, name);
            put_text(&mut text, value);
        }
        let (mut block, mut rest) = (Vec::with_capacity(STEP), text.as_slice());
        loop {
            block.reserve(STEP);
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .map_err(invalid)?;
            let used = usize::try_from(self.0.total_in() - before).map_err(invalid)?;
            rest = rest.get(used..).unwrap_or_default();
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            low = (low + u32::from(*byte)) % 65_521;
            high = (high + low) % 65_521;
        }
        // Its Adler-32, which every stream names at its beginning.
        assert_eq!((DICTIONARY.len(), (high << 16) | low), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_are_read_as_they_were_written_one_after_the_other() {
        let mut deflater = Deflater::new().expect("a dictionary");
        let mut inflater = Inflater::default();
        let long = "x".repeat(5000);
        for headers in [
            &[("streamtype", "error"), ("port", "80")][..],
            &[],
            &[("streamtype", "data"), ("port", "80"), ("long", &long)],
        ] {
            let block = deflater.write(headers).expect("short");
            let read = inflater.read(&block).expect("a block");
            let read: Vec<(&str, &str)> = read.iter().map(|(n, v)| (&**n, &**v)).collect();
            assert_eq!(read, headers);
        }
    }

    #[test]
    fn what_is_no_block_or_too_long_is_refused() {
        Inflater::default().read(b"nonsense").expect_err("no zlib");
        let mut deflater = Deflater::new().expect("a dictionary");
        let endless = "x".repeat(LONGEST * 2);
        let block = deflater.write(&[("a", &endless)]).expect("a block");
        Inflater::default().read(&block).expect_err("too long");
        assert_eq!(parse(&[0, 0, 0, 9, 0, 0, 0, 1, b'a']), None);
    }
}
