"""Asks for a URL the way any program does, and says what came back. Exit code 0 where the answer is a refusal (403)."""

import json
import sys
import urllib.error
import urllib.request

try:
    with urllib.request.urlopen(sys.argv[1]) as answer:
        print(answer.status, "the host was reached")
        sys.exit(1)
except urllib.error.HTTPError as answer:
    print(answer.code, "says the proxy, in words that a program can read:")
    for name, value in json.load(answer).items():
        print(f"  {name:<11} {value}")
    sys.exit(0 if answer.code == 403 else 1)
