#!/usr/bin/env python3
"""The live part of bench/train.sh: requests of several kinds through `weir serve` in front of two `weir mock`.

    bench/train_live.py WEIR-LIVE
"""
import http.client
import json
import re
import signal
import subprocess
import sys
import threading

WEIR = sys.argv[1]
WORDS = " ".join(f"word{i % 977}" for i in range(60000))


def start(*args):
    child = subprocess.Popen([WEIR, *args], stdout=subprocess.PIPE, text=True)
    ports = re.findall(r":(\d+)", child.stdout.readline())
    if not ports:
        sys.exit(f"train_live: weir {args[0]} did not start")
    return child, int(ports[0])


def body(prompt_bytes, shift, **more):
    text = WORDS[shift * 7:shift * 7 + prompt_bytes]
    return json.dumps({"model": "mock", "messages": [{"role": "system", "content": "You are a helpful assistant."},
                                                     {"role": "user", "content": text}], **more})


def client(port, requests):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for data in requests:
        c.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
        answer = c.getresponse()
        if answer.status != 200:
            sys.exit(f"train_live: status {answer.status}: {answer.read()[:300]}")
        answer.read()
    c.close()


def main():
    engines = [start("mock", "--port", "0", "--scale", "0.001", "--seed", str(i)) for i in range(2)]
    workers = [a for _, port in engines for a in ("--worker", f"http://127.0.0.1:{port}")]
    weir, port = start("serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "100", *workers)
    kinds = [
        [body(4000, i, max_tokens=2) for i in range(1200)],  # most requests are small documents
        [body(4000, i, max_tokens=2) for i in range(1200, 2400)],
        [body(300, i, max_tokens=40, stream=True) for i in range(200)],
        [body(8000, i, max_tokens=200, stream=True, stream_options={"include_usage": True}) for i in range(60)],
        [body(400000, i, max_tokens=2) for i in range(40)],
    ]
    threads = [threading.Thread(target=client, args=(port, k)) for k in kinds]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for child in (weir, *(e for e, _ in engines)):
        child.send_signal(signal.SIGTERM)
        child.wait(60)  # what was counted is written at the end


main()
