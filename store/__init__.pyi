from . import errors as errors
from .integrity.report import VerifyReport as VerifyReport
from .integrity.verify import verify_store as verify_store
from .reading.open import open_store as open_store
from .state.info import info as info
from .writing.create import create as create
from .writing.relabel import relabel as relabel
from .writing.writer import ActivationWriter as ActivationWriter
