"""What is said of an error to someone who shall not read a traceback."""


def reason_of(error: BaseException) -> str:
    """Its first line; an error without a word is named."""
    return (str(error) or type(error).__name__).splitlines()[0]
