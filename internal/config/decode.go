package config

import (
	"encoding"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// maxNodes bounds how much a file may unfold to through aliases.
const maxNodes = 100_000

// source remembers where every value of a file stands.
type source struct {
	file  string
	where map[string]*token.Position // key path → its value, or its key when it has none
	raw   map[string]string          // key path → scalar as written
	sum   string                     // SHA-256 of the text in hex
}

// problem is a Problem at the place of a key, or of the nearest key above it.
func (s *source) problem(key, message, expected string) Problem {
	p := Problem{File: s.file, Key: key, Value: s.raw[key], Message: message, Expected: expected}
	for at := key; ; {
		if pos, ok := s.where[at]; ok {
			p.Line, p.Column = pos.Line, pos.Column
			return p
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			if pos, ok := s.where[""]; ok && at != "" {
				p.Line, p.Column = pos.Line, pos.Column
			}
			return p
		}
		at = at[:i]
	}
}

// decoder walks the syntax tree and fills the structs; it never stops at an
// error.
type decoder struct {
	*source
	problems
	lookup  lookup
	keep    bool // leave references in texts as they are
	anchors map[string]ast.Node
	nodes   int
}

func (d *decoder) fail(key, message, expected string) {
	d.add(d.problem(key, message, expected))
}

// plain follows aliases, anchors and tags; nil is an absent value.
func (d *decoder) plain(n ast.Node) ast.Node {
	for range 100 {
		switch v := n.(type) {
		case nil:
			return nil
		case *ast.AnchorNode:
			n = v.Value
		case *ast.TagNode:
			n = v.Value
		case *ast.AliasNode:
			n = d.anchors[v.Value.GetToken().Value]
		case *ast.NullNode:
			return nil
		default:
			return n
		}
	}
	return nil
}

// Visit implements ast.Visitor: it notes the anchors.
func (d *decoder) Visit(n ast.Node) ast.Visitor {
	if a, ok := n.(*ast.AnchorNode); ok && a.Name != nil && a.Name.GetToken() != nil {
		d.anchors[a.Name.GetToken().Value] = a.Value
	}
	return d
}

type entry struct {
	key   string
	pos   *token.Position
	value ast.Node
}

// entries lists the keys of a mapping, merged ones last; a duplicate is an
// error.
func (d *decoder) entries(n ast.Node, path string, depth int) ([]entry, bool) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		return nil, false
	}
	var out, merged []entry
	seen := map[string]bool{}
	for _, v := range values {
		if v.Key.IsMergeKey() {
			if more, ok := d.entries(d.plain(v.Value), path, depth+1); ok && depth < 10 {
				merged = append(merged, more...)
			} else {
				d.fail(path, "<< merges nothing", "an alias of a mapping")
			}
			continue
		}
		k := v.Key.GetToken()
		key := k.Value
		if seen[key] {
			d.where[join(path, key)] = k.Position
			d.fail(join(path, key), "the key stands here twice", "each key once")
			continue
		}
		seen[key] = true
		out = append(out, entry{key: key, pos: k.Position, value: v.Value})
	}
	for _, e := range merged {
		if !seen[e.key] {
			seen[e.key] = true
			out = append(out, e)
		}
	}
	return out, true
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// note keeps the place of a value.
func (d *decoder) note(path string, n ast.Node, key *token.Position) {
	if key != nil {
		d.where[path] = key
	}
	if pos := placeOf(n); pos != nil && (key == nil || !block(n)) {
		d.where[path] = pos
	}
}

// placeOf is where a value begins. The token of a mapping is its first ':', so
// its first key stands for it.
func placeOf(n ast.Node) *token.Position {
	switch m := n.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if len(m.Values) > 0 {
			return m.Values[0].Key.GetToken().Position
		}
	case *ast.MappingValueNode:
		return m.Key.GetToken().Position
	}
	if t := n.GetToken(); t != nil {
		return t.Position
	}
	return nil
}

// block says that the key of a value is the better place for it.
func block(n ast.Node) bool {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return true
	}
	return false
}

var textType = reflect.TypeFor[encoding.TextUnmarshaler]()

// value decodes n into v. field holds the tags that apply.
func (d *decoder) value(n ast.Node, v reflect.Value, path string, field reflect.StructTag) {
	if d.nodes++; d.nodes > maxNodes {
		if d.nodes == maxNodes+1 {
			d.fail(path, "the file unfolds to more than 100,000 values", "less use of aliases")
		}
		return
	}
	n = d.plain(n)
	if v.Kind() == reflect.Pointer {
		if n != nil {
			v.Set(reflect.New(v.Type().Elem()))
			d.value(n, v.Elem(), path, field)
		}
		return
	}
	if v.Addr().Type().Implements(textType) {
		d.scalar(n, v, path, field)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path, field)
	case reflect.Map:
		d.mapping(n, v, path)
	default:
		d.scalar(n, v, path, field)
	}
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	es, ok := d.entries(n, path, 0)
	if n != nil && !ok {
		d.fail(path, "is "+kindOf(n), "a mapping of keys")
		return
	}
	given := map[string]entry{}
	names := keysOf(v.Type())
	for _, e := range es {
		if _, known := names[e.key]; !known {
			d.where[join(path, e.key)] = e.pos
			d.fail(join(path, e.key), "unknown key"+didYouMean(e.key, names), "")
			continue
		}
		given[e.key] = e
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, ok := f.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		at := join(path, name)
		e, present := given[name]
		if present {
			d.note(at, d.plain(e.value), e.pos)
		}
		if !present || d.plain(e.value) == nil {
			d.absent(v.Field(i), f, at, present)
			continue
		}
		d.value(e.value, v.Field(i), at, f.Tag)
	}
}

// absent fills in the default, or reports a required key.
func (d *decoder) absent(v reflect.Value, f reflect.StructField, path string, present bool) {
	if f.Tag.Get("required") == "true" {
		message := "is missing"
		if present {
			message = "is empty"
		}
		d.fail(path, message, f.Tag.Get("doc"))
		return
	}
	if def, ok := f.Tag.Lookup("default"); ok {
		if err := setText(v, def); err != nil {
			panic(fmt.Sprintf("config: default of %s: %v", path, err)) // a mistake in our own tags
		}
		d.locate(v, path, f.Tag)
		return
	}
	if v.Kind() == reflect.Struct {
		d.structure(nil, v, path)
	}
}

func (d *decoder) sequence(n ast.Node, v reflect.Value, path string, field reflect.StructTag) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(path, "is "+kindOf(n), "a list (lines that begin with '- ')")
		return
	}
	if len(s.Values) == 0 && field.Get("required") == "true" {
		d.fail(path, "is an empty list", field.Get("doc"))
	}
	out := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
	for i, item := range s.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.note(at, d.plain(item), nil)
		if d.plain(item) == nil {
			d.fail(at, "is empty", "a value")
			continue
		}
		d.value(item, out.Index(i), at, field)
	}
	v.Set(out)
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	es, ok := d.entries(n, path, 0)
	if !ok {
		d.fail(path, "is "+kindOf(n), "a mapping of keys to texts")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(es))
	for _, e := range es {
		at := join(path, e.key)
		d.note(at, d.plain(e.value), e.pos)
		item := reflect.New(v.Type().Elem()).Elem()
		if d.plain(e.value) != nil {
			d.value(e.value, item, at, "")
		}
		out.SetMapIndex(reflect.ValueOf(e.key), item)
	}
	v.Set(out)
}

func (d *decoder) scalar(n ast.Node, v reflect.Value, path string, field reflect.StructTag) {
	text, ok := scalarText(n)
	if !ok {
		d.fail(path, "is "+kindOf(n), expectedOf(v, field))
		return
	}
	d.raw[path] = text
	resolved := text
	if hasReference(text) {
		if d.keep && v.Kind() == reflect.String {
			v.SetString(text)
			return
		}
		r, err := d.lookup.resolve(text)
		if err != nil {
			d.fail(path, err.Error(), "")
			return
		}
		resolved = r
	}
	if err := setText(v, resolved); err != nil {
		d.fail(path, fmt.Sprintf("is %q", text), expectedOr(err, v, field))
		return
	}
	d.limits(v, text, path, field)
	d.locate(v, path, field)
}

// limits checks enum, min and max.
func (d *decoder) limits(v reflect.Value, text, path string, field reflect.StructTag) {
	if enum := field.Get("enum"); enum != "" {
		allowed := strings.Split(enum, ",")
		for _, a := range allowed {
			if v.String() == a {
				return
			}
		}
		set := map[string]reflect.StructTag{}
		for _, a := range allowed {
			set[a] = ""
		}
		d.fail(path, fmt.Sprintf("is %q", text)+didYouMean(text, set), "one of "+strings.Join(allowed, ", "))
		return
	}
	if !v.CanInt() && !v.CanFloat() {
		return
	}
	if _, ok := v.Interface().(events.Duration); ok {
		switch zero := field.Get("min") == "0"; {
		case zero && v.Int() < 0:
			d.fail(path, fmt.Sprintf("is %q", text), "0 or a positive duration, e.g. 50ms")
		case !zero && v.Int() <= 0:
			d.fail(path, fmt.Sprintf("is %q", text), "a positive duration, e.g. 90s or 10m")
		}
		return
	}
	var x float64
	if v.CanInt() {
		x = float64(v.Int())
	} else {
		x = v.Float()
	}
	low, errLow := strconv.ParseFloat(field.Get("min"), 64)
	high, errHigh := strconv.ParseFloat(field.Get("max"), 64)
	if (errLow == nil && !(x >= low)) || (errHigh == nil && !(x <= high)) {
		d.fail(path, "is "+text, expectedOf(v, field))
	}
}

// locate makes a file name absolute and looks whether the file can be read.
func (d *decoder) locate(v reflect.Value, path string, field reflect.StructTag) {
	kind := field.Get("path")
	if kind == "" || v.Kind() != reflect.String || v.String() == "" || v.String() == InCluster || d.keep {
		return
	}
	name := v.String()
	if !filepath.IsAbs(name) {
		name = filepath.Join(d.lookup.dir, name)
		v.SetString(name)
	}
	if kind != "exists" || d.lookup.apart {
		return
	}
	f, err := os.Open(name) //nolint:gosec // the operator's own file names the operator's own files
	if err != nil {
		d.fail(path, fmt.Sprintf("file %s can't be read: %v", name, cause(err)), "a readable file")
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		d.fail(path, fmt.Sprintf("%s is a folder", name), "a readable file")
	}
}
