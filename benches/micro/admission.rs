//! The check of a request head.

use divan::Bencher;
use divan::counter::BytesCount;

const HEAD: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: balancer.example:8080\r\n\
    Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.99.1\r\n\
    X-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\nX-Stainless-Runtime: CPython\r\n\
    Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\nAccept-Encoding: gzip, deflate\r\n\
    Connection: keep-alive\r\nContent-Length: 1024\r\n\r\n";

#[divan::bench]
fn head(bencher: Bencher<'_, '_>) {
    bencher
        .counter(BytesCount::of_str(HEAD))
        .bench(|| mini_lb::inside::check(divan::black_box(HEAD.as_bytes())).unwrap());
}

/// The parse that follows, for comparison.
#[divan::bench]
fn httparse(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::of_str(HEAD)).bench(|| {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        request
            .parse(divan::black_box(HEAD.as_bytes()))
            .unwrap()
            .unwrap()
    });
}
