package bus

// Mutants break one rule of this package each, for the rest of the process.
func Mutants() map[string]func() {
	return map[string]func(){
		"late ack":           func() { broken.fence = true },
		"no lease check":     func() { broken.lease = true },
		"no CAS":             func() { broken.cas = true },
		"no outbox replay":   func() { broken.outbox = true },
		"same id in redrive": func() { broken.copyID = true },
	}
}

// Decompress is what a reader of an object does with it.
func Decompress(raw []byte) ([]byte, error) { return decompress(encodingZstd, raw) }

// Compress is what the writer of a message or object does with its data.
func Compress(data []byte) []byte { return zstdEncoder.EncodeAll(data, nil) }
