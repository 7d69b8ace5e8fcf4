"""Writes zips anew, in place, so that the same contents are the same bytes: plain-zips.py ZIP...

Files in the order of their names, all of 1980-01-01, with their rights and without further fields. What is compressed stays as it is:
another zlib would compress it otherwise.
"""

import os
import struct
import sys
import zipfile

DATE = 1 << 5 | 1  # 1980-01-01, the zero of zips
UNIX = 3
VERSION = 20  # what it takes to unpack: deflate


def compressed(file, info):
    """The bytes of an entry as they stand in the file."""
    file.seek(info.header_offset)
    name_length, extra_length = struct.unpack("<26xHH", file.read(30))
    file.seek(name_length + extra_length, os.SEEK_CUR)
    return file.read(info.compress_size)


def plain(path):
    """The zip's bytes, written anew."""
    body, directory = b"", b""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        if archive.testzip() is not None:
            raise SystemExit(f"{path}: its checksums do not fit")
        entries = sorted(archive.infolist(), key=lambda info: info.filename)
        for info in entries:
            name, data = info.filename.encode(), compressed(file, info)
            utf8 = 0 if name.isascii() else 0x800
            common = struct.pack("<HHHHHIIIHH", VERSION, utf8, info.compress_type, 0, DATE, info.CRC, len(data), info.file_size, len(name), 0)
            rights = struct.pack("<HHHII", 0, 0, 0, info.external_attr & 0xFFFF0000, len(body))
            directory += b"PK\x01\x02" + struct.pack("<BB", VERSION, UNIX) + common + rights + name
            body += b"PK\x03\x04" + common + name + data
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


for zip_path in sys.argv[1:]:
    written = plain(zip_path)
    with open(zip_path + ".new", "wb") as new:
        new.write(written)
    os.replace(zip_path + ".new", zip_path)
