"""The exception for errors that the user can fix."""


class DcclipError(Exception):
    """An error that the user can fix: `what` says where and what is wrong, `hint` what to do next.

    The command line prints it as two lines (`error:` and `hint:`) and exits with 1.
    """

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.hint)  # it is pickled to leave a worker process
