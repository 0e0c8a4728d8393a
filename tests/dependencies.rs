//! What the crates below this one are, and that the one that stands in for another does its work.

use pingora_core::protocols::http::compression::Algorithm;

/// Three events, as GNU gzip 1.12 writes them with `gzip -n -9`.
const EVENTS: &[u8] =
    b"data: {\"text\":\" the\"}\n\ndata: {\"text\":\" the\"}\n\ndata: {\"text\":\" the\"}\n\n";
const EVENTS_GZIP: &[u8] = b"\
    \x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4b\x49\x2c\x49\xb4\x52\xa8\x56\x2a\x49\xad\x28\x51\xb2\x52\x52\
    \x28\xc9\x48\x55\xaa\xe5\xe2\x4a\x21\x49\x18\x00\x6d\xed\x0f\x8c\x45\x00\x00\x00";

/// Bytes that do not repeat, so that a compressor has to give out about as many as it takes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

fn through(
    algorithm: &mut dyn pingora_core::protocols::http::compression::Encode,
    pieces: &[&[u8]],
) -> Vec<u8> {
    let mut whole = Vec::new();
    for (nth, piece) in pieces.iter().enumerate() {
        whole.extend_from_slice(
            &algorithm
                .encode(piece, nth + 1 == pieces.len())
                .expect("no error of the algorithm"),
        );
    }
    whole
}

#[test]
fn pingora_reads_what_gzip_wrote() {
    let mut decompressor = Algorithm::Gzip
        .decompressor(true)
        .expect("Pingora knows gzip");
    assert_eq!(through(&mut *decompressor, &[EVENTS_GZIP]), EVENTS);

    let pieces: Vec<&[u8]> = EVENTS_GZIP.chunks(1).collect();
    let mut decompressor = Algorithm::Gzip
        .decompressor(true)
        .expect("Pingora knows gzip");
    assert_eq!(through(&mut *decompressor, &pieces), EVENTS, "byte by byte");
}

#[test]
fn what_pingora_compresses_it_reads_again() {
    for body in [Vec::new(), EVENTS.repeat(10_000), noise(1_000_000)] {
        for level in [1, 6, 9] {
            let mut compressor = Algorithm::Gzip
                .compressor(level)
                .expect("Pingora knows gzip");
            let pieces: Vec<&[u8]> = if body.is_empty() {
                vec![&[]]
            } else {
                body.chunks(30_011).collect()
            };
            let packed = through(&mut *compressor, &pieces);
            assert_eq!(
                packed[..3],
                [0x1f, 0x8b, 8],
                "the magic bytes of gzip, and deflate"
            );
            assert_eq!(
                packed[packed.len() - 4..],
                (body.len() as u32).to_le_bytes(),
                "the length in the trailer"
            );

            let mut decompressor = Algorithm::Gzip
                .decompressor(true)
                .expect("Pingora knows gzip");
            assert!(
                through(
                    &mut *decompressor,
                    &packed.chunks(7_919).collect::<Vec<_>>()
                ) == body
            );
        }
    }
}

#[test]
fn a_gzip_body_that_is_cut_or_changed_is_an_error() {
    let end = |bytes: &[u8]| {
        Algorithm::Gzip
            .decompressor(true)
            .expect("Pingora knows gzip")
            .encode(bytes, true)
    };
    assert!(end(EVENTS_GZIP).is_ok());
    assert!(
        end(&EVENTS_GZIP[..EVENTS_GZIP.len() - 1]).is_err(),
        "without the last byte"
    );
    let mut changed = EVENTS_GZIP.to_vec();
    let checksum = changed.len() - 8;
    changed[checksum] ^= 1;
    assert!(end(&changed).is_err(), "with another checksum");
}
