package auditing

import "encoding/json"

// Details are what payloads of every type may say under the same names.
type Details struct {
	Pool    string
	Actor   string
	Reason  string // a code, or a person's own words
	Message string // the sentence that goes with a code
}

// details reads pool, actor and reason out of any payload of the catalogue. A
// payload that has none gives none: recording an event never depends on
// understanding it.
func details(data []byte) Details {
	var p struct {
		Pool    string          `json:"pool"`
		Actor   string          `json:"actor"`
		Reason  json.RawMessage `json:"reason"`
		Failure struct {
			Reason json.RawMessage `json:"reason"`
		} `json:"failure"`
	}
	// A field of another kind is another type's business; the others are read.
	_ = json.Unmarshal(data, &p)
	d := Details{Pool: p.Pool, Actor: p.Actor}
	raw := p.Reason
	if raw == nil {
		raw = p.Failure.Reason
	}
	var coded struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &coded) == nil {
		d.Reason, d.Message = coded.Code, coded.Message
		return d
	}
	if json.Unmarshal(raw, &d.Reason) != nil {
		d.Reason = ""
	}
	return d
}
