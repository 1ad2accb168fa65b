"""Speaks sentences with eSpeak NG, in a process of its own: `espeak` starts it and says what.

A script, never imported; it imports nothing of this project. eSpeak NG, which comes with
espeakng-loader, is under the GPL.
Reads JSON from standard input: a list of `{"voice", "text", "rate", "pitch", "range"}`. Writes an
.npz to standard output: the audio of all, the phoneme events with their positions, and the counts
of each by sentence.
"""

import ctypes
import io
import json
import sys
from pathlib import Path

import espeakng_loader
import numpy as np

# Of speak_lib.h, revision 12.
SYNCHRONOUS, PHONEME_EVENTS, DO_NOT_EXIT = 2, 0x0001, 0x8000
LIST_TERMINATED, PHONEME = 0, 7
CHARACTERS, UTF8 = 1, 1
RATE, PITCH, RANGE = 1, 3, 4


class Identity(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", Identity),
    )


Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)


class Speaker:
    """eSpeak, which collects what it says."""

    def __init__(self):
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.data = Path(espeakng_loader.get_data_path())
        self.rate = self.library.espeak_Initialize(
            SYNCHRONOUS, 0, str(self.data).encode(), PHONEME_EVENTS | DO_NOT_EXIT
        )
        if self.rate <= 0:
            raise SystemExit(
                f"eSpeak NG found no data in {self.data}: install espeakng-loader again"
            )
        # Some voices have breath, which is noise; its seed would be the time.
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self.callback = Callback(self._collect)  # kept: the library calls it later
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_Info.restype = ctypes.c_char_p
        self.version = self.library.espeak_Info(None).decode()
        self.audio, self.events = [], []

    def _collect(self, samples, count, events):
        if samples and count:
            self.audio.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != LIST_TERMINATED:
            if events[i].type == PHONEME:
                self.events.append((events[i].sample, events[i].id.string.decode()))
            i += 1
        return 0

    def say(self, voice, text, rate, pitch, range):
        """The audio, and the phoneme events: samples at which they begin, and their names."""
        variant = self.data / "voices" / "!v" / voice.rpartition("+")[2]
        # The library takes another voice where it doesn't know the variant.
        if not variant.is_file() or self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SystemExit(f"eSpeak NG {self.version} has no voice {voice!r}")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, range)):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.audio, self.events = [], []
        said = text.encode()
        if self.library.espeak_Synth(said, len(said) + 1, 0, CHARACTERS, 0, UTF8, None, None) != 0:
            raise SystemExit(f"eSpeak NG {self.version} couldn't say {text!r}")
        return np.concatenate(self.audio), self.events


speaker = Speaker()
said = [speaker.say(**request) for request in json.load(sys.stdin)]
events = [event for _, of_one in said for event in of_one]
file = io.BytesIO()
np.savez(
    file,
    version=speaker.version,
    rate=speaker.rate,
    audio=np.concatenate([audio for audio, _ in said]),
    samples=[len(audio) for audio, _ in said],
    positions=[position for position, _ in events],
    mnemonics=[mnemonic for _, mnemonic in events],
    events=[len(of_one) for _, of_one in said],
)
sys.stdout.buffer.write(file.getvalue())
