"""The text of files, whatever program wrote them."""

import codecs

_MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_of(content: bytes) -> str:
    """Text in UTF-8, with a byte order mark or without, or in UTF-16 or UTF-32.

    Raises:
        UnicodeDecodeError: it is of another encoding, or no text.

    Example:
        >>> text_of("a cat".encode("utf-16")), text_of("a cat".encode("utf-16-le")), text_of(b"a cat")
        ('a cat', 'a cat', 'a cat')
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    even, odd = content[::2].count(0), content[1::2].count(0)
    if 4 * max(even, odd) > len(content):  # UTF-16 without its mark: of Latin letters every other byte is zero
        return content.decode("utf-16-le" if odd > even else "utf-16-be")
    return content.decode("utf-8-sig")
