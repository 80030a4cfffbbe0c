"""dcclip in mteb: Chinese zero-shot and retrieval tasks on images, and dcclip's models as models
of mteb.
"""

from dcclip_mteb.model import DcclipEncoder, model_meta
from dcclip_mteb.results import write_results
from dcclip_mteb.retrieval import RetrievalZh
from dcclip_mteb.tasks import TASKS, get_tasks
from dcclip_mteb.zero_shot import ZeroShotZh

__all__ = [
    "TASKS",
    "DcclipEncoder",
    "RetrievalZh",
    "ZeroShotZh",
    "get_tasks",
    "model_meta",
    "write_results",
]
