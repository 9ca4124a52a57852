# This is a script because `mix.exs` needs it before the application is compiled.
defmodule Mix.Tasks.Compile.BarytheriumNative do
  @moduledoc """
  Builds the native library with cargo and copies it to the application's `priv/native`.

  Cargo decides what to rebuild. It builds in `CARGO_TARGET_DIR`, or by default in a directory next
  to the build path, which all environments share. It never builds in the source directory, which
  may be read-only.
  """
  use Mix.Task.Compiler

  alias Mix.Task.Compiler.Diagnostic

  @crate "barytherium_nif"
  # rustler requires this version. Keep it equal to `rust-version` in Cargo.toml.
  @required "1.91.0"
  @hint "Debian 12 and 13 have it as cargo-web; elsewhere see https://rustup.rs."
  @sources Path.expand("../../..", __DIR__)
  # The VM looks for `.so` on macOS too.
  @library "lib#{@crate}.so"

  @impl true
  def run(_args) do
    with {:ok, cargo} <- find_cargo(),
         :ok <- build(cargo) do
      install(built_library(), installed_library())
    else
      {:error, message} -> failure(message)
    end
  end

  @impl true
  def manifests, do: [installed_library()]

  @impl true
  def clean do
    File.rm(installed_library())
    File.rm_rf(target_dir())
    :ok
  end

  # The first cargo that is new enough. An old one of the system may come before rustup's in PATH.
  defp find_cargo do
    [System.find_executable("cargo"), Path.expand("~/.cargo/bin/cargo")]
    |> Enum.filter(&(&1 && File.exists?(&1)))
    |> Enum.map(&{&1, version(&1)})
    |> choose()
  end

  defp choose([]),
    do:
      {:error,
       "Barytherium needs cargo (Rust #{@required} or later), and there is none. #{@hint}"}

  defp choose([{first, version} | _] = found) do
    case Enum.find(found, fn {_cargo, version} -> new_enough?(version) end) do
      {cargo, _version} ->
        {:ok, cargo}

      nil ->
        {:error,
         "Barytherium needs Rust #{@required} or later, and #{first} is #{version}. #{@hint}"}
    end
  end

  defp version(cargo) do
    {output, _status} = System.cmd(cargo, ["--version"], stderr_to_stdout: true)

    case Regex.run(~r/^cargo (\d+\.\d+\.\d+)/, output) do
      [_, version] -> version
      nil -> "broken (#{String.trim(output)})"
    end
  end

  defp new_enough?(version) do
    case Version.parse(version) do
      {:ok, version} -> Version.compare(version, @required) != :lt
      :error -> false
    end
  end

  defp build(cargo) do
    args = ["build", "--release", "--locked", "--quiet", "--package", @crate]
    args = args ++ ["--target-dir", target_dir()]
    # The environment stays as it is, so RUSTC_WRAPPER and similar settings work. Cargo reads
    # .cargo/config.toml from the directory that it runs in.
    options = [cd: @sources, stderr_to_stdout: true, into: IO.stream(:stdio, :line)]

    case System.cmd(cargo, args, options) do
      {_output, 0} -> :ok
      {_output, status} -> {:error, "cargo could not build #{@crate} (exit status #{status})."}
    end
  end

  # Writing to a loaded library would kill the VM, so a new file replaces the old one.
  defp install(built, installed) do
    library = File.read!(built)

    if File.read(installed) == {:ok, library} do
      {:noop, []}
    else
      File.mkdir_p!(Path.dirname(installed))
      temporary = installed <> ".#{System.pid()}"
      File.write!(temporary, library)
      File.rename!(temporary, installed)
      {:ok, []}
    end
  end

  defp failure(message) do
    Mix.shell().error(message)
    file = Path.join(@sources, "Cargo.toml")

    diagnostic = %Diagnostic{
      compiler_name: "cargo",
      file: file,
      message: message,
      position: 0,
      severity: :error
    }

    {:error, [diagnostic]}
  end

  defp installed_library, do: Path.join([Mix.Project.app_path(), "priv", "native", @library])

  defp built_library do
    triple = System.get_env("CARGO_BUILD_TARGET", "")
    Path.join([target_dir(), triple, "release", cargo_name(:os.type())])
  end

  defp cargo_name({:unix, :darwin}), do: "lib#{@crate}.dylib"
  defp cargo_name(_os), do: "lib#{@crate}.so"

  defp target_dir do
    beside_build = Path.expand("../barytherium_cargo", Mix.Project.build_path())
    Path.expand(System.get_env("CARGO_TARGET_DIR", beside_build))
  end
end
