package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// Load reads and checks the file at path. The error is an *Errors that lists
// everything that is wrong.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, &Errors{Problems: []Problem{{File: path, Message: fmt.Sprintf("can't be read: %v", cause(err))}}}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("locate configuration: %w", err)
	}
	return Parse(path, data, dir)
}

// Parse is Load for a file that is already in memory. name is what problems
// call it, dir what relative paths are relative to.
func Parse(name string, data []byte, dir string) (*Config, error) {
	return load(name, data, lookup{dir: dir, env: os.LookupEnv}, false)
}

// LoadPolicy is Load for a file whose policies are of interest alone: the files that it
// names, such as a kubeconfig, need not be there.
func LoadPolicy(path string) (*Config, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, &Errors{Problems: []Problem{{File: path, Message: fmt.Sprintf("can't be read: %v", cause(err))}}}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("locate configuration: %w", err)
	}
	return load(path, data, lookup{dir: dir, env: os.LookupEnv, apart: true}, false)
}

// Show is the configuration at path as YAML with every default filled in.
// References stay as they are written, so that no secret is shown.
func Show(path string) ([]byte, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := load(path, data, lookup{dir: filepath.Dir(path), env: os.LookupEnv}, true)
	if err != nil {
		return nil, err
	}
	out, err := yaml.MarshalWithOptions(c, yaml.OmitEmpty(), yaml.IndentSequence(true))
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return out, nil
}

func load(name string, data []byte, l lookup, keep bool) (*Config, error) {
	d := &decoder{
		source: &source{file: name, where: map[string]*token.Position{}, raw: map[string]string{}},
		lookup: l, keep: keep, anchors: map[string]ast.Node{},
	}
	sum := sha256.Sum256(data)
	d.sum = hex.EncodeToString(sum[:])
	body, ok := d.syntax(data)
	if !ok {
		return nil, d.err()
	}
	if body != nil {
		ast.Walk(d, body)
	}
	d.where[""] = &token.Position{Line: 1, Column: 1}
	c := &Config{src: d.source}
	d.structure(d.plain(body), reflect.ValueOf(c).Elem(), "")
	d.fillProviders(c)
	if !keep {
		d.check(c)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// TextDigest identifies the text that the configuration was read from: the same
// file has the same, whatever the version of the program makes of it.
func (c *Config) TextDigest() string {
	if c.src == nil {
		return ""
	}
	return c.src.sum
}

// syntax parses the file; what stops it there is its only problem.
func (d *decoder) syntax(data []byte) (body ast.Node, ok bool) {
	if len(data) > maxFile {
		d.add(Problem{File: d.file, Message: "is larger than 1 MiB", Expected: "a configuration file"})
		return nil, false
	}
	file, err := parseYAML(data)
	if err != nil {
		p := Problem{File: d.file, Message: err.Error()}
		var at yaml.Error
		if errors.As(err, &at) {
			p.Message = "is no YAML: " + at.GetMessage()
			if t := at.GetToken(); t != nil && t.Position != nil {
				p.Line, p.Column = t.Position.Line, t.Position.Column
			}
		}
		d.add(p)
		return nil, false
	}
	docs := slices.DeleteFunc(slices.Clone(file.Docs), func(n *ast.DocumentNode) bool { return n.Body == nil })
	if len(docs) > 1 {
		p := Problem{File: d.file, Message: "holds more than one YAML document", Expected: "one"}
		if pos := placeOf(docs[1].Body); pos != nil {
			p.Line, p.Column = pos.Line, pos.Column
		}
		d.add(p)
		return nil, false
	}
	if len(docs) == 0 {
		return nil, true
	}
	return docs[0].Body, true
}

// parseYAML turns a panic of the parser, which fuzzing has provoked before in
// YAML parsers, into an error: a configuration must never take the process
// down that is reloading it.
func parseYAML(data []byte) (file *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("is no YAML: %v", r)
		}
	}()
	return parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
}
