"""The artifact: one file that holds a trained flow as a program, its manifest, and the proof that it is whole.

``manifest`` is what it says of itself, ``golden`` the case that whatever runs it must reproduce, ``file`` how it is
written, checked and read, ``torchscript`` the language of its program.
"""

from service.artifact.file import Artifact as Artifact
from service.artifact.file import ArtifactError as ArtifactError
from service.artifact.file import check_golden as check_golden
from service.artifact.file import digest_of as digest_of
from service.artifact.file import open_artifact as open_artifact
from service.artifact.file import read_artifact as read_artifact
from service.artifact.file import read_records as read_records
from service.artifact.file import save_artifact as save_artifact
from service.artifact.file import version_of as version_of
from service.artifact.golden import ROUND_TRIP_TOLERANCE as ROUND_TRIP_TOLERANCE
from service.artifact.golden import golden_fault as golden_fault
from service.artifact.golden import golden_rows as golden_rows
from service.artifact.golden import within_tolerance as within_tolerance
from service.artifact.manifest import OPERATIONS as OPERATIONS
from service.artifact.manifest import Calibration as Calibration
from service.artifact.manifest import Golden as Golden
from service.artifact.manifest import LatentPart as LatentPart
from service.artifact.manifest import Manifest as Manifest
from service.artifact.manifest import Operation as Operation
from service.artifact.manifest import Signature as Signature
from service.artifact.manifest import TestResult as TestResult
from service.artifact.manifest import Unit as Unit
from service.artifact.manifest import as_published as as_published
from service.artifact.manifest import methods_of as methods_of
from service.artifact.manifest import unit_of_likelihood as unit_of_likelihood
from service.artifact.mixture import Mixture as Mixture
from service.artifact.scoring import Density as Density
from service.artifact.scoring import Scoring as Scoring
from service.artifact.torchscript import Program as Program
from service.artifact.torchscript import compile_module as compile_module
from service.artifact.torchscript import load_records as load_records
from service.artifact.torchscript import save as save
from service.columns import NOISE_FLOOR as NOISE_FLOOR
from service.columns import Column as Column
from service.columns import listed_categories as listed_categories
