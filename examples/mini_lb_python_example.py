"""A client of a running balancer with Python's standard library: health, models, chat, chat as a stream, and
logprobs of a prompt. With the package `openai` installed, also a call with that.

    cargo run -- demo                                    # in another terminal
    python examples/mini_lb_python_example.py [URL]      # http://127.0.0.1:8080

The exit code is not 0 when something is wrong.
"""

import json
import sys
import urllib.error
import urllib.request

TIMEOUT_SECS = 60


def ask(url, body=None):
    """The open answer to a GET, or to a POST when there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=TIMEOUT_SECS)


def ask_json(url, body=None):
    with ask(url, body) as answer:
        return json.load(answer)


def events(answer):
    """The JSON of each event of a stream, which must say [DONE] before it ends."""
    done = False
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            done = True
            continue
        event = json.loads(data)
        # After a stream has begun, this is how SGLang and the balancer say that it failed.
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
    answer = ask_json(url + "/v1/chat/completions", chat)
    print("chat     ", answer["choices"][0]["message"]["content"].strip())

    with ask(url + "/v1/chat/completions", chat | {"stream": True}) as answer:
        deltas = [event["choices"][0]["delta"].get("content") or "" for event in events(answer)]
    print("stream   ", "".join(deltas).strip(), f"({len(deltas)} events)")

    generate = {
        "text": "The capital of France is",
        "return_logprob": True,
        "logprob_start_len": 0,
        "return_text_in_logprobs": True,
        "sampling_params": {"max_new_tokens": 4},
    }
    answer = ask_json(url + "/generate", generate)
    print("generate ", answer["text"].strip())
    for logprob, _token_id, text in answer["meta_info"]["input_token_logprobs"]:
        print(f"  prompt  {text!r:<12} {logprob}")

    try:
        import openai
    except ImportError:
        print("openai    not installed")
        return
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", timeout=TIMEOUT_SECS)
    answer = client.chat.completions.create(**chat)
    print("openai   ", answer.choices[0].message.content.strip())


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
