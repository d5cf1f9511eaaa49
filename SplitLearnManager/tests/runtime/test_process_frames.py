"""Frames out of a stream of bytes, in whatever pieces it comes."""

from hypothesis import given
from hypothesis import strategies as st

from splitlearn_manager.runtime.process_frames import HEADER, Frame, FrameReader, Kind, header_of

FRAMES = st.lists(
    st.builds(
        Frame,
        st.sampled_from(Kind),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=40),
        st.floats(0, 1e9),
        st.floats(0, 1e9),
    ),
    max_size=6,
)


def as_bytes(frames: list[Frame]) -> bytes:
    return b"".join(
        header_of(f.kind, len(f.payload), f.call, f.session, f.sent_s, f.began_s) + f.payload for f in frames
    )


@given(FRAMES, st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames: list[Frame], data: st.DataObject) -> None:
    stream = as_bytes(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader()
    came: list[Frame] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        came += reader.feed(stream[begin:end])
    assert came == frames


def test_a_frame_comes_out_with_its_last_byte_and_not_before() -> None:
    stream = as_bytes([Frame(Kind.STEP, 1, 2, b"abc"), Frame(Kind.CLOSE, 3, 4, b"")])
    reader = FrameReader()
    numbers = [(at, frame.call) for at in range(len(stream)) for frame in reader.feed(stream[at : at + 1])]
    assert numbers == [(HEADER.size + 3 - 1, 1), (len(stream) - 1, 3)]
