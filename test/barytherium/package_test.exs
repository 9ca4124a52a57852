defmodule Barytherium.PackageTest do
  # What users get who have no Rust: a package with a checksum file, and a release on a server.
  use ExUnit.Case, async: false

  alias Barytherium.Build.{Archive, Precompiled, Target}
  alias Barytherium.{Certificates, HttpsServer, WithoutCargo}

  @moduletag :tmp_dir
  # It waits for other programs most of the time, see `script/test`.
  @moduletag :programs
  @moduletag timeout: 180_000
  @library "_build/prod/lib/barytherium/priv/native/libbarytherium_nif.so"

  setup_all do
    %{certificates: Certificates.make(["localhost"])}
  end

  setup %{tmp_dir: directory, certificates: certificates} do
    package = Path.join(directory, "package")
    project = Path.join(directory, "project")
    for path <- [package, project], do: File.mkdir_p!(path)

    for file <- ["lib", "mix.exs", "Cargo.toml", ".formatter.exs"],
        do: File.cp_r!(file, Path.join(package, file))

    File.write!(Path.join(project, "mix.exs"), """
    defmodule Feed.MixProject do
      use Mix.Project
      def project, do: [app: :feed, version: "0.1.0", deps: [{:barytherium, path: "../package"}]]
    end
    """)

    environment =
      WithoutCargo.environment(directory) ++
        [
          {"MIX_ENV", "prod"},
          {"HEX_CACERTS_PATH", Certificates.write!(certificates, directory).cacertfile},
          {"BARYTHERIUM_CACHE_PATH", Path.join(directory, "cache")}
        ]

    built = Application.app_dir(:barytherium, "priv/native/libbarytherium_nif.so")

    %{
      package: package,
      project: project,
      environment: environment,
      built: built
    }
  end

  test "the library of the release is downloaded once, and loads", context do
    archive = pack(context)
    port = serve(context, File.read!(archive))
    expect(context, Path.basename(archive), Archive.sha256(File.read!(archive)))

    parse = ~S|IO.inspect(Barytherium.Native.escape("a:b"))|
    {output, 0} = mix(context, ["run", "-e", parse], base(port))
    assert output =~ "Downloading #{Path.basename(archive)}"
    assert output =~ ~S("a\\cb")
    assert_received {:requested, ^port, _path}
    assert File.read!(library(context)) == File.read!(context.built)

    # Neither the server nor the cache is needed again.
    File.rm_rf!(Path.join(context.tmp_dir, "cache"))
    assert mix(context, ["compile"], base(port)) == {"", 0}
    refute_received {:requested, ^port, _path}

    # The compiler finds out if something else replaced the library.
    File.write!(library(context), "something else")
    assert {_output, 0} = mix(context, ["compile"], base(port))
    assert File.read!(library(context)) == File.read!(context.built)
  end

  test "nothing is installed if the checksum is wrong", context do
    name = context |> pack() |> Path.basename()
    port = serve(context, "something else")
    expect(context, name, String.duplicate("0", 64))

    {output, status} = mix(context, ["compile"], base(port))
    assert status != 0
    assert output =~ "#{name} has the wrong checksum, so it is not used"
    assert output =~ "BARYTHERIUM_BUILD=1 builds the library instead"
    refute File.exists?(library(context))
    refute File.exists?(Path.join(context.tmp_dir, "cache"))
  end

  test "BARYTHERIUM_BUILD=1 builds with cargo", context do
    expect(context, "any.tar.gz", "0")
    {output, status} = run(["compile"], context.package, context, [{"BARYTHERIUM_BUILD", "1"}])
    assert status != 0
    assert output =~ "Barytherium needs cargo (Rust 1.91.0 or later), and there is none."
  end

  test "BARYTHERIUM_NIF_PATH names the library", context do
    expect(context, "any.tar.gz", "0")

    for {path, expected} <- [
          {"/nowhere/lib.so",
           "BARYTHERIUM_NIF_PATH names /nowhere/lib.so, which cannot be read: no such file or directory."},
          {"lib.so", "BARYTHERIUM_NIF_PATH has to be an absolute path, and lib.so is not."},
          {__ENV__.file,
           "BARYTHERIUM_NIF_PATH names #{__ENV__.file}, which is not a shared library."}
        ] do
      environment = [{"BARYTHERIUM_NIF_PATH", path}]
      {output, status} = run(["compile"], context.package, context, environment)
      assert status != 0
      assert output =~ expected
      refute File.exists?(Path.join(context.package, @library))
    end

    # This compiler alone, because the others take seconds.
    environment = [{"BARYTHERIUM_NIF_PATH", context.built}]
    {_output, 0} = run(["compile.barytherium_native"], context.package, context, environment)
    assert File.read!(Path.join(context.package, @library)) == File.read!(context.built)
  end

  # As script/package does it.
  defp pack(context) do
    {:ok, target} = Target.find(Precompiled.system().architecture, %{})
    Archive.pack!(context.built, context.tmp_dir, Mix.Project.config()[:version], target, "")
  end

  defp expect(context, name, digest) do
    path = Path.join(context.package, Archive.checksum_file())
    File.write!(path, inspect(%{name => "sha256:#{digest}"}))
  end

  defp serve(context, archive),
    do: HttpsServer.start(context.certificates.server, fn _path -> {200, [], archive} end)

  defp base(port), do: [{"BARYTHERIUM_BASE_URL", "https://localhost:#{port}/v1"}]
  defp library(context), do: Path.join(context.project, @library)
  defp mix(context, args, environment), do: run(args, context.project, context, environment)

  # A command that hangs must not outlive the test.
  defp run(args, directory, context, environment) do
    System.cmd("timeout", ["60", "mix" | args],
      cd: directory,
      env: context.environment ++ environment,
      stderr_to_stdout: true
    )
  end
end
