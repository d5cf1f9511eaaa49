"""Messages of the wire to bytes and back: the only place, with the codec, that knows protobuf."""
