"""A client of a running balancer with Python's standard library: health, models, chat, streamed chat, and logprobs of
a prompt; and with the package `openai`, if it is installed.

    cargo run -- demo                                    # in another terminal
    python examples/mini_lb_python_example.py [URL]      # http://127.0.0.1:8080

The exit code is 1 when a request fails.
"""

import json
import sys
import urllib.error
import urllib.request

TIMEOUT_SECS = 60


def ask(url, body=None):
    """Sends a GET, or a POST with a body, and returns the open response."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECS)


def ask_json(url, body=None):
    with ask(url, body) as response:
        return json.load(response)


def events(response):
    """Yields the JSON of each event of a stream; raises when the stream ends without [DONE]."""
    done = False
    for line in response:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            done = True
            continue
        event = json.loads(data)
        # SGLang and the balancer report a failure after the first event this way.
        if "error" in event:
            raise ValueError(event["error"])
        yield event
    if not done:
        raise ValueError("the stream ended without [DONE]")


def show(url):
    ask(url + "/health").close()
    print("health    ok")

    model = ask_json(url + "/v1/models")["data"][0]["id"]
    print("model    ", model)

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    chat = {"model": model, "messages": messages, "max_tokens": 12}
    response = ask_json(url + "/v1/chat/completions", chat)
    print("chat     ", response["choices"][0]["message"]["content"].strip())

    with ask(url + "/v1/chat/completions", chat | {"stream": True}) as response:
        deltas = [event["choices"][0]["delta"].get("content") or "" for event in events(response)]
    print("stream   ", "".join(deltas).strip(), f"({len(deltas)} events)")

    generate = {
        "text": "The capital of France is",
        "return_logprob": True,
        "logprob_start_len": 0,
        "return_text_in_logprobs": True,
        "sampling_params": {"max_new_tokens": 4},
    }
    response = ask_json(url + "/generate", generate)
    print("generate ", response["text"].strip())
    for logprob, _token_id, text in response["meta_info"]["input_token_logprobs"]:
        print(f"  prompt  {text!r:<12} {logprob}")

    try:
        import openai
    except ImportError:
        print("openai    not installed")
        return
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", timeout=TIMEOUT_SECS)
    response = client.chat.completions.create(**chat)
    print("openai   ", response.choices[0].message.content.strip())


def main():
    url = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080").rstrip("/")
    try:
        show(url)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url}: {error.code}: {error.read().decode(errors='replace')}")
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"{url}: {error!r}")


if __name__ == "__main__":
    main()
