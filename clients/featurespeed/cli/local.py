"""An answer without a server: the workers' engine in this process. Loads torch, and no more than the job needs."""

from __future__ import annotations

from featurespeed.budget import Budget, check_budget
from featurespeed.cli.outcome import LocalFailure
from featurespeed.contract.data import Dataset
from featurespeed.contract.job import FieldError
from featurespeed.contract.report import Report
from featurespeed.contract.validation import SpecError, parse_request
from featurespeed.progress import OnEvent
from featurespeed.spec_files import Specification


def answer_here(specification: Specification, listener: OnEvent) -> Report:
    """The report; raises SpecError, LocalFailure, and ModuleNotFoundError without the extra ``workers``."""
    request = parse_request(specification.document)
    check_budget(request, Budget())  # before anything is built, or even loaded
    if isinstance(request.data, Dataset) and specification.dataset is None:
        bound = "without a server the data must be a file, named by data.path"
        raise SpecError([FieldError(field="data.sha256", value=request.data.sha256, bound=bound)])
    if request.checkpoint is not None and specification.checkpoint is None:
        bound = "without a server the checkpoint must be a file, named by checkpoint.path"
        raise SpecError([FieldError(field="checkpoint.sha256", value=request.checkpoint.sha256, bound=bound)])

    from featurespeed_workers.errors import MeasurementError
    from featurespeed_workers.local import answer

    try:
        dataset, checkpoint = specification.dataset, specification.checkpoint
        return answer(request, dataset=dataset, checkpoint=checkpoint, listener=listener)
    except MeasurementError as error:
        raise LocalFailure(str(error)) from error
    except (SpecError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # as a server would tell it: the job has failed
        raise LocalFailure(f"the computation stopped with {type(error).__name__}: {error}") from error
