#!/usr/bin/env python3
"""Makes a small real corpus in The Pile's format out of text that Debian and Ubuntu packages carry.

    launch/make_corpus.py FOLDER [--holdout 0.04]

writes FOLDER/00.jsonl.zst and FOLDER/val.jsonl.zst: one {"text", "meta": {"pile_set_name"}} a line, one zstd frame a file,
no text twice, documents in an order that depends on their text alone; validation is whole documents, a share of the text. Packages are
downloaded and unpacked in a temporary folder, never installed; one that is not to be had is left out. With none at all
the text is what lies under /usr/share of this machine. Needs python3, zstd and, for the packages, apt-get and dpkg-deb.
"""
import argparse
import glob
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def read(path):
    opened = gzip.open(path) if path.endswith((".gz", ".dz")) else open(path, "rb")
    with opened as file:
        return file.read()


def dictionary(root):
    """The entries of a dictd dictionary: headword, offset and length (in base-64 digits) are in its index."""

    def number(digits):
        value = 0
        for digit in digits:
            value = value * 64 + BASE64.index(digit)
        return value

    for index in sorted(glob.glob(root + "/usr/share/dictd/*.index")):
        text = read(index.removesuffix(".index") + ".dict.dz")
        spans = set()
        for line in read(index).decode().splitlines():
            word, offset, length = line.split("\t")[:3]
            if not word.startswith("00"):
                spans.add((number(offset), number(length)))
        for offset, length in sorted(spans):
            yield text[offset : offset + length].decode("utf-8", "replace")


def fortunes(root):
    """Quotations, separated by lines that hold one percent sign."""
    for path in sorted(glob.glob(root + "/usr/share/games/fortunes/*")):
        if not path.endswith((".dat", ".u8")):
            yield from read(path).decode("utf-8", "replace").split("\n%\n")


def debian_faq(root):
    """The questions and answers of the Debian FAQ, one a section."""
    for path in glob.glob(root + "/usr/share/doc/debian/FAQ/debian-faq.en.txt.gz"):
        text = read(path).decode("utf-8", "replace")
        yield from re.split(r"\n(?=\d+\.\d+\.\s)", text)


# Package, its licence, and how its text falls into documents. All are in Debian 12 and in Ubuntu 24.04 (universe).
PACKAGES = [
    ("fortunes", "quotations, each under its author's terms; the collection is free to use", fortunes),
    ("dict-foldoc", "Free On-line Dictionary of Computing, GFDL 1.1 or later", dictionary),
    ("dict-jargon", "the Jargon File, public domain", dictionary),
    ("dict-devil", "The Devil's Dictionary by Ambrose Bierce, public domain", dictionary),
    ("debian-faq", "the Debian FAQ, GPL 2 or later", debian_faq),
]


def from_packages():
    """(package, document) of every package that apt-get can download."""
    for package, licence, split in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download", package]
            try:
                done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
                archives = glob.glob(folder + "/*.deb")
                if done.returncode != 0 or not archives:
                    last = (done.stdout.decode(errors="replace").strip() or "no answer").splitlines()[-1]
                    print(f"  {package}: left out ({last})")
                    continue
                subprocess.run(["dpkg-deb", "-x", archives[0], folder], check=True)
            except (OSError, subprocess.SubprocessError) as error:
                print(f"  {package}: left out ({error})")
                continue
            documents = [document.strip() for document in split(folder)]
            print(f"  {package}: {len(documents)} documents ({licence})")
            yield from ((package, document) for document in documents)


def from_this_machine(limit=6_000_000):
    """(folder, document): files of plain text under /usr/share, until `limit` bytes are found."""
    found = 0
    for kind, pattern in (("licences", "common-licenses/*"), ("perl", "perl/**/*.pod"), ("doc", "doc/**/*.txt*"),
                          ("doc", "doc/**/README*"), ("doc", "doc/**/NEWS*"), ("doc", "doc/**/copyright")):
        for path in sorted(glob.glob("/usr/share/" + pattern, recursive=True)):
            if found > limit:
                return
            try:
                text = read(path).decode("utf-8")
            except (OSError, EOFError, UnicodeDecodeError):
                continue
            found += len(text)
            yield kind, text.strip()


def write(path, documents):
    with subprocess.Popen(["zstd", "-q", "-f", "-3", "-o", path], stdin=subprocess.PIPE) as zstd:
        for name, text in documents:
            line = json.dumps({"text": text, "meta": {"pile_set_name": name}}, ensure_ascii=False)
            zstd.stdin.write(line.encode() + b"\n")
    if zstd.returncode != 0:
        sys.exit(f"make_corpus.py: zstd could not write {path}")
    size = sum(len(text.encode()) for _, text in documents)
    print(f"{path}: {len(documents)} documents, {size / 1e6:.2f} MB of text")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--holdout", type=float, default=0.04, help="share of the text kept for validation")
    arguments = parser.parse_args()

    print("Text from packages, downloaded and not installed:")
    documents = list(from_packages())
    if not documents:
        print("No package can be downloaded (no network, or apt-get update has not run): using text under /usr/share instead.")
        documents = list(from_this_machine())
    # One copy of each text, ordered by its hash: a shuffle that every machine repeats.
    by_hash = {hashlib.sha256(text.encode()).digest(): (name, text) for name, text in documents if len(text) >= 40}
    shuffled = [by_hash[key] for key in sorted(by_hash)]
    size = sum(len(text) for _, text in shuffled)
    if size < 300_000:
        sys.exit("make_corpus.py: less than 0.3 MB of text was found; connect to the network and run apt-get update first")
    held_out, held_out_size = 0, 0
    while held_out_size < size * arguments.holdout:
        held_out_size += len(shuffled[held_out][1])
        held_out += 1
    os.makedirs(arguments.folder, exist_ok=True)
    write(os.path.join(arguments.folder, "00.jsonl.zst"), shuffled[held_out:])
    write(os.path.join(arguments.folder, "val.jsonl.zst"), shuffled[:held_out])


if __name__ == "__main__":
    main()
