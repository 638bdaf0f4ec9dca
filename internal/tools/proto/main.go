// Command proto generates Go code from the protocol definitions of the
// repository. It needs neither protoc nor anything else that Go does not build.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// A definition keeps its own go_package; ours is told to the generators.
const (
	folder = "internal/provider/externalgrpc/protos"
	file   = "externalgrpc.proto"
	pkg    = "github.com/k3s-autoscaler/k3s-autoscaler/" + folder
)

func main() {
	if err := run("../../.."); err != nil {
		fmt.Fprintln(os.Stderr, "proto:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	dir := filepath.Join(root, folder)
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard, // comments go along
	}
	files, err := compiler.Compile(context.Background(), file)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{file},
		Parameter:      proto.String("paths=source_relative,M" + file + "=" + pkg),
		ProtoFile:      closure(files[0], nil),
	}
	raw, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	for _, tool := range []string{"google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc"} {
		if err := generate(dir, tool, raw); err != nil {
			return fmt.Errorf("%s: %w", tool, err)
		}
	}
	return nil
}

// closure lists a file after everything that it imports.
func closure(f protoreflect.FileDescriptor, out []*descriptorpb.FileDescriptorProto) []*descriptorpb.FileDescriptorProto {
	for i := range f.Imports().Len() {
		out = closure(f.Imports().Get(i).FileDescriptor, out)
	}
	for _, known := range out {
		if known.GetName() == f.Path() {
			return out
		}
	}
	return append(out, protoutil.ProtoFromFileDescriptor(f))
}

func generate(dir, tool string, request []byte) error {
	cmd := exec.Command("go", "tool", tool)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(request), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", *response.Error)
	}
	for _, f := range response.File {
		if err := os.WriteFile(filepath.Join(dir, f.GetName()), []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
