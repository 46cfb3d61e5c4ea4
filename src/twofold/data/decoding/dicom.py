"""DICOM files as Pillow images: what their headers say of their pixels, applied by pydicom (the extra `dicom`).

Only elements that tell how to read the pixels are parsed, and the patient's ID, of which nothing but a hash is kept:
names, dates and the like never reach the program. Meaning of the elements: DICOM PS3.3, C.7.6.3 (Image Pixel), C.11.1
(Modality LUT) and C.11.2 (VOI LUT).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from twofold.data.decoding.frames import MOST_FRAMES
from twofold.devices import available_memory
from twofold.errors import UserError
from twofold.reading import regular

EXTENSIONS = frozenset({".dcm", ".dicom", ".dic", ".ima"})
"""Usual endings of the files' names; many have none, or that of an identifier."""
BEGINS_AT, MAGIC = 128, b"DICM"
"""Where what is in a DICOM file: PS3.10, 7.1."""
INVERTED, WINDOW, STATED, PATIENT = "dicom_inverted", "dicom_window", "dicom_stated", "dicom_patient"
"""What `info` of an opened file tells: whether low values are white; the (black, white) of its window and of the bits
that are stored; a hash of the patient's ID."""
_NOT_PIXELS = "DICOMDIR"
_META_BEGINS, _DEFLATED = 144, b"1.2.840.10008.1.2.1.99"
"""Where the elements that follow the length of the file's meta information begin, and the UID of deflated ones."""
_INFLATED, _TIGHTEST = 2**28, 100
"""Bytes that deflated elements may have however tightly they are packed, and how tightly beyond."""
_ELEMENTS = (
    "TransferSyntaxUID", "PatientID", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PlanarConfiguration", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


def is_dicom(path: str | Path) -> bool:
    """Whether a file begins as DICOM files do, whatever it is called; a directory of other files (DICOMDIR) is none."""
    if Path(path).name.upper() == _NOT_PIXELS:
        return False
    try:
        regular(path)
        with Path(path).open("rb") as file:
            return begins_as_dicom(file.read(BEGINS_AT + len(MAGIC)))
    except OSError:
        return False


def begins_as_dicom(data: bytes) -> bool:
    """Whether these are the first bytes of a DICOM file."""
    return data[BEGINS_AT : BEGINS_AT + len(MAGIC)] == MAGIC


def may_be_dicom(name: str) -> bool:
    """Whether a name leaves open that a file is DICOM: by its ending, or because it has none, or one of digits."""
    suffix = Path(name).suffix.lower()
    return suffix in EXTENSIONS or not suffix or suffix[1:].isdigit()


def require_pydicom(path: str) -> None:
    """Raise a UserError if the extra is missing."""
    if importlib.util.find_spec("pydicom") is None:
        raise UserError(f'{path}: DICOM files need an extra: pip install "twofold[dicom]"')


class DicomFile(ImageFile.ImageFile):
    """An opened DICOM file. Its pixels are those of mode RGB; or I or F after the modality's rescaling."""

    format = "DICOM"
    format_description = "Digital Imaging and Communications in Medicine"

    def _open(self) -> None:
        from pydicom import dcmread

        assert self.fp is not None
        _check_deflated(self.fp)
        self._header: Any = dcmread(self.fp, stop_before_pixels=True, specific_tags=list(_ELEMENTS))
        if not ("Rows" in self._header and "Columns" in self._header and "BitsAllocated" in self._header):
            raise ValueError("a DICOM file without pixels")
        self._fp = self.fp
        self._size = (int(self._header.Columns), int(self._header.Rows))
        self.n_frames = max(1, int(self._header.get("NumberOfFrames", 1) or 1))
        if self.n_frames > MOST_FRAMES:
            raise ValueError(f"it says that it has {self.n_frames:,} frames, more than {MOST_FRAMES:,}")
        self.is_animated = self.n_frames > 1
        self._frame = 0
        self._grey = int(self._header.get("SamplesPerPixel", 1)) == 1 and self._colours() != "PALETTE COLOR"
        if patient := str(self._header.get("PatientID", "") or "").strip():
            self.info[PATIENT] = hashlib.sha256(patient.encode()).hexdigest()[:16]
        self._describe()

    def seek(self, frame: int) -> None:
        """Make another frame the current one."""
        if not 0 <= frame < self.n_frames:
            raise EOFError("no more images in DICOM file")
        if frame != self._frame:
            self._frame = frame
            self._im = None
            self._describe()

    def tell(self) -> int:
        """The current frame."""
        return self._frame

    def load(self) -> Any:
        """Decode the current frame."""
        if self._im is None:
            try:
                self.im = self._decoded().im
            except AttributeError as error:  # of a missing element; numpy, which asks for pixels, passes over these
                raise OSError(str(error)) from error
        return Image.Image.load(self)

    def _colours(self) -> str:
        return str(self._header.get("PhotometricInterpretation", "")).strip()

    def _describe(self) -> None:
        """Mode and `info` of the current frame, from the header alone."""
        for name in (INVERTED, WINDOW, STATED):
            self.info.pop(name, None)
        if not self._grey:
            self._mode = "RGB"
            return
        slope, intercept = self._rescaling()
        lut = bool(self._header.get("ModalityLUTSequence"))
        stored = int(self._header.get("BitsStored", self._header.BitsAllocated))
        whole = slope.is_integer() and intercept.is_integer() and abs(slope) < 2**15 and abs(intercept) < 2**30
        self._mode = "I" if int(self._header.BitsAllocated) <= 16 and (lut or whole) else "F"
        self.info[INVERTED] = self._colours() == "MONOCHROME1"
        if not lut and stored < 16:  # of full containers nobody knows how much is used
            low = -(2 ** (stored - 1)) if self._header.get("PixelRepresentation", 0) else 0
            ends = sorted(value * slope + intercept for value in (low, low + 2**stored - 1))
            self.info[STATED] = (ends[0], ends[1])
        if (window := self._window()) is not None:
            self.info[WINDOW] = window

    def _decoded(self) -> Image.Image:
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
        from pydicom.pixels.utils import pixel_array

        file: Any = self.fp
        file.seek(0)
        values: NDArray[Any] = pixel_array(file, index=self._frame)
        if self._colours() == "PALETTE COLOR":
            values = apply_color_lut(values, self._header)
        if not self._grey:
            stored = int(self._header.BitsStored) if self._colours() != "PALETTE COLOR" else 8 * values.itemsize
            if stored != 8:
                values = np.rint(values.astype(np.float64) * (255 / (2**stored - 1)))
            return Image.fromarray(values.astype(np.uint8))
        if self._header.get("ModalityLUTSequence"):
            values = apply_modality_lut(values, self._header)
        else:
            slope, intercept = self._rescaling()
            values = values.astype(np.float64) * slope + intercept
        return Image.fromarray(values.astype(np.int32 if self._mode == "I" else np.float32))

    def _rescaling(self) -> tuple[float, float]:
        """Slope and intercept: of the file, or of the current frame."""
        item = self._item("PixelValueTransformationSequence")
        return float(item.get("RescaleSlope", 1) or 1), float(item.get("RescaleIntercept", 0) or 0)

    def _window(self) -> tuple[float, float] | None:
        """Black and white of the first window, C.11.2.1.2; None without one."""
        item = self._item("FrameVOILUTSequence")
        centre, width = (_first(item.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if centre is None or width is None or width < 1:
            return None
        if str(item.get("VOILUTFunction", "")).strip() == "LINEAR_EXACT":
            return centre - width / 2, centre + width / 2
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2

    def _item(self, sequence: str) -> Any:
        """What holds the elements of one kind: the current frame's group, the one of all frames, or the file."""
        groups: list[Any] = []
        frames: Sequence[Any] = self._header.get("PerFrameFunctionalGroupsSequence") or ()
        if self._frame < len(frames):
            groups.append(frames[self._frame])
        groups += list(self._header.get("SharedFunctionalGroupsSequence") or ())[:1]
        return next((group[sequence][0] for group in groups if group.get(sequence)), self._header)


def open_dicom(path: str, contents: bytes | None = None) -> DicomFile:
    """Open a file, or what one holds.

    Raises:
        UserError: the extra is missing.
    """
    require_pydicom(path)
    return DicomFile(path if contents is None else io.BytesIO(contents))


def _check_deflated(file: IO[bytes]) -> None:
    """Inflate a file whose elements are deflated (PS3.5, A.5) without keeping what comes out, and go back to its start.

    Raises:
        ValueError: it would take more memory than there is.
    """
    head = file.read(_META_BEGINS + 2**10)
    file.seek(0)
    if _DEFLATED not in head[_META_BEGINS:]:
        return
    length = int.from_bytes(
        head[_META_BEGINS - 4 : _META_BEGINS], "little"
    )  # (0002,0000), the first element: PS3.10, 7.1
    most = min(available_memory() // 4, max(_INFLATED, _TIGHTEST * file.seek(0, os.SEEK_END)))
    file.seek(_META_BEGINS + length)
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = file.read(2**16)
    while data and not inflate.eof:
        size += len(inflate.decompress(data, 2**24))
        if size > most:
            raise ValueError(f"its deflated elements have more than the {most:,} bytes that are read")
        data = inflate.unconsumed_tail or file.read(2**16)
    file.seek(0)


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    return float(value) if isinstance(value, int | float | str) else float(value[0])
