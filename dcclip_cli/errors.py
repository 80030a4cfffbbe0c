"""The one error class for mistakes that the user can mend."""


class DcclipError(Exception):
    """A user's mistake: `what` says where and what is wrong, `hint` what to do next.

    Lower layers raise it, `dcclip_cli.cli` alone catches it, prints two lines (`error:` and `hint:`) and exits with 1.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.hint)  # so that it can leave a worker process
