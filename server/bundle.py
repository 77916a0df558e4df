"""Loads a policy bundle and verifies it: every byte that is used later was hashed here first."""

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from server.errors import BundleError
from server.manifest import FORMAT_VERSION, Manifest

MIB = 1 << 20
FILE_CAPS = {
    "actor.onnx": 256 * MIB,
    "uncertainty.onnx": 256 * MIB,
    "policy.onnx": 256 * MIB,
    "golden.npz": 64 * MIB,
    "README.md": MIB,
    "card.json": 4 * MIB,
    "calibration.svg": 4 * MIB,
    "warning.svg": 4 * MIB,
}
"""The files a bundle may consist of beside its manifest, and the most bytes each may have."""
FIGURES = ("calibration.svg", "warning.svg")
"""Only a calibrated bundle may have them."""
MANIFEST_CAP = 4 * MIB

SAMPLE_OUTPUTS = ("return_samples", "gradient_samples")


def output_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shape of each output of `policy.onnx` without its batch axis, by name: the action, the summary, the samples."""
    uncertainty, actions = manifest.uncertainty, (len(manifest.action),)
    quantiles = (len(uncertainty.return_quantile_levels),)
    return {
        "action": actions,
        "return_mean": (),
        "return_std": (),
        "return_quantiles_raw": quantiles,
        **({} if manifest.calibration is None else {"return_quantiles_corrected": quantiles}),
        "return_cvar": (),
        "return_below_threshold": (),
        "gradient_mean": actions,
        "gradient_std": actions,
        "gradient_norm_quantiles": (len(uncertainty.gradient_norm_levels),),
        "gradient_sign_agreement": actions,
        "gradient_resultant_length": (),
        "critic_disagreement": (),
        "data_distance": (),
        **({"observation_gradient_mean": (len(manifest.observation),)} if uncertainty.observation_gradient else {}),
        "return_samples": (uncertainty.sample_count,),
        "gradient_samples": (uncertainty.sample_count, *actions),
    }


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle, held in memory."""

    path: Path
    """Where it was read."""
    manifest: Manifest
    """Its contract and provenance."""
    files: Mapping[str, bytes]
    """Content of every file but the manifest, as hashed."""
    golden: Mapping[str, NDArray[np.float32]]
    """`observation` (G, S) and every output of `policy.onnx` for it, (G, ...)."""


def load_bundle(path: Path) -> Bundle:
    """Reads a bundle and checks sizes, hashes, manifest and golden data. Follows no symbolic link, unpickles nothing.

    Raises:
        BundleError: names the file, the reason and the cure.
    """
    if not path.is_dir():
        raise BundleError(f"bundle {path} is not a directory; give the directory that dst-export wrote")
    manifest = _manifest(path)
    files = _files(path, manifest)
    return Bundle(path=path, manifest=manifest, files=files, golden=_golden(path, manifest, files["golden.npz"]))


def _refuse(path: Path, reason: str, cure: str, cause: Exception | None = None) -> NoReturn:
    raise BundleError(f"bundle refused: {path}: {reason}; {cure}") from cause


def _read(path: Path, cap: int) -> bytes:
    """Reads a regular file of at most `cap` bytes without following a link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        _refuse(path, "missing", "copy the whole bundle or export it again", error)
    except OSError as error:
        _refuse(path, f"cannot be opened ({error.strerror})", "a bundle holds readable regular files, no links", error)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, so that what was checked is what is read
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "not a regular file", "a bundle holds regular files only")
        content = file.read(cap + 1)
    if len(content) > cap:
        _refuse(path, f"larger than {cap} bytes", "this is no bundle that dst-export wrote")
    return content


def _manifest(bundle: Path) -> Manifest:
    path = bundle / "manifest.json"
    content = _read(path, MANIFEST_CAP)
    again = "export the bundle again"
    try:
        document = json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"not valid JSON ({error})", "the file is truncated or edited; copy or export it again", error)
    if not isinstance(document, dict):
        _refuse(path, "must be a JSON object", again)
    version = document.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        _refuse(
            path,
            f"format_version {version} is newer than {FORMAT_VERSION}, the one this server reads",
            "update the server, or export with the release that the server belongs to",
        )
    if type(version) is int and version < FORMAT_VERSION:
        _refuse(
            path,
            f"format_version {version} is older than {FORMAT_VERSION}, the one this server reads",
            "export the run again with the dst-export of this release",
        )
    try:
        # Validated as JSON, so that strictness refuses "1" for 1 but takes 1 for 1.0.
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        _refuse(path, f"{field}: {first['msg']}", again, error)
    digest = _version(document)
    if digest != manifest.version:
        _refuse(
            path,
            f"version must be the SHA-256 of its content, {digest}, but it says {manifest.version}",
            f"the manifest was edited; {again}",
        )
    return manifest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _version(document: dict[str, Any]) -> str:
    unversioned = {key: value for key, value in document.items() if key != "version"}
    text = json.dumps(unversioned, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _files(bundle: Path, manifest: Manifest) -> dict[str, bytes]:
    required = set(FILE_CAPS) - set(FIGURES)
    allowed = required if manifest.calibration is None else set(FILE_CAPS)
    if not required <= set(manifest.files) <= allowed:
        difference = ", ".join(sorted((required - set(manifest.files)) | (set(manifest.files) - allowed)))
        _refuse(
            bundle / "manifest.json",
            f"files must list {', '.join(sorted(required))}, and in a calibrated bundle at most {', '.join(FIGURES)} "
            f"beside them; it differs in {difference}",
            "export the bundle again",
        )
    unlisted = sorted({entry.name for entry in bundle.iterdir()} - set(manifest.files) - {"manifest.json"})
    if unlisted:
        _refuse(bundle / unlisted[0], "not listed in the manifest", "remove it: a bundle is immutable once written")
    files = {}
    for name in sorted(manifest.files):
        files[name] = _read(bundle / name, FILE_CAPS[name])
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != manifest.files[name]:
            _refuse(
                bundle / name,
                f"SHA-256 is {digest}, the manifest says {manifest.files[name]}",
                "the file is truncated or edited; copy the bundle again from where it was exported",
            )
    return files


def _golden(bundle: Path, manifest: Manifest, content: bytes) -> dict[str, NDArray[np.float32]]:
    path, again = bundle / "golden.npz", "export the bundle again"
    shapes = {"observation": (len(manifest.observation),), **output_shapes(manifest)}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > FILE_CAPS["golden.npz"]:
            _refuse(path, f"unpacks to {unpacked} bytes, more than {FILE_CAPS['golden.npz']}", again)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            golden = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, BundleError):
            raise
        _refuse(path, f"not a readable npz file ({error})", again, error)
    if set(golden) != set(shapes):
        difference = ", ".join(sorted(set(golden) ^ set(shapes)))
        _refuse(path, f"must hold exactly the arrays {', '.join(shapes)}; it differs in {difference}", again)
    count = len(golden["observation"]) if golden["observation"].ndim else 0
    if count == 0:
        _refuse(path, "must hold at least one observation", again)
    for name, shape in shapes.items():
        array = golden[name]
        if array.shape != (count, *shape) or array.dtype != np.float32:
            _refuse(path, f"{name} must be float32 {(count, *shape)}, got {array.dtype} {array.shape}", again)
        if not np.isfinite(array).all():
            _refuse(path, f"{name} must be finite", again)
    return golden
