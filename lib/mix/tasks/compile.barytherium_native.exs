# These are scripts because `mix.exs` needs them before the application is compiled.
for script <- ~w(target archive cargo download precompiled) do
  Code.require_file("../barytherium_build/#{script}.exs", __DIR__)
end

defmodule Mix.Tasks.Compile.BarytheriumNative do
  @moduledoc """
  Puts the native library into the application's `priv/native`.

  It takes the first of these that applies:

    * the library that `BARYTHERIUM_NIF_PATH` names;
    * the library of the release, if this is a package with a checksum file. It is downloaded once, and
      not used unless its checksum is right. `BARYTHERIUM_BUILD=1` turns this off;
    * what cargo builds from the sources. Cargo decides what to rebuild. It builds in
      `CARGO_TARGET_DIR`, or by default in a directory next to the build path, which all environments
      share. It never builds in the source directory, which may be read-only.
  """
  use Mix.Task.Compiler

  alias Barytherium.Build.{Archive, Cargo, Precompiled, Target}
  alias Mix.Task.Compiler.Diagnostic

  @sources Path.expand("../../..", __DIR__)
  # The VM looks for `.so` on macOS too.
  @library "libbarytherium_nif.so"

  @impl true
  def run(_args) do
    # Elixir 1.15 and later hide the applications of OTP that a project does not start.
    if function_exported?(Mix, :ensure_application!, 1) do
      for application <- [:crypto, :ssl, :inets] do
        apply(Mix, :ensure_application!, [application])
      end
    end

    case library(System.get_env()) do
      :current -> {:noop, []}
      {:ok, library} -> install(library, installed_library())
      {:error, message} -> failure(message)
    end
  end

  @impl true
  def manifests, do: [installed_library()]

  @impl true
  def clean do
    File.rm(installed_library())
    File.rm(origin())
    # What `CARGO_TARGET_DIR` names may be shared by many projects.
    File.rm_rf(beside_build())
    :ok
  end

  defp library(environment) do
    checksum_file = Path.join(@sources, Archive.checksum_file())
    prebuilt = Map.get(environment, "BARYTHERIUM_NIF_PATH", "")

    case forced?(environment["BARYTHERIUM_BUILD"]) do
      {:error, message} ->
        {:error, message}

      {:ok, _forced?} when prebuilt != "" ->
        given(prebuilt)

      {:ok, true} ->
        built(environment)

      {:ok, false} ->
        if File.exists?(checksum_file),
          do: precompiled(checksum_file, environment),
          else: built(environment)
    end
  end

  defp forced?(value) when value in ["1", "true"], do: {:ok, true}
  defp forced?(value) when value in [nil, "", "0", "false"], do: {:ok, false}
  defp forced?(value), do: {:error, "BARYTHERIUM_BUILD is 1 or true, and not #{value}."}

  # Mix compiles a dependency in its own directory, so a relative path would mean another file there.
  defp given(path) do
    with :absolute <- Path.type(path),
         {:ok, library} <- File.read(path),
         true <- library?(library) do
      {:ok, library}
    else
      false ->
        {:error, "BARYTHERIUM_NIF_PATH names #{path}, which is not a shared library."}

      :relative ->
        {:error, "BARYTHERIUM_NIF_PATH has to be an absolute path, and #{path} is not."}

      {:error, reason} ->
        {:error,
         "BARYTHERIUM_NIF_PATH names #{path}, which cannot be read: #{:file.format_error(reason)}."}
    end
  end

  # The first bytes of ELF, and of Mach-O for one or several processors.
  defp library?(<<0x7F, "ELF", _rest::binary>>), do: true
  defp library?(<<0xCF, 0xFA, 0xED, 0xFE, _rest::binary>>), do: true
  defp library?(<<0xCA, 0xFE, 0xBA, 0xBE, _rest::binary>>), do: true
  defp library?(_bytes), do: false

  defp built(environment) do
    %{architecture: architecture} = Precompiled.system()

    with {:ok, library} <- Cargo.build(target_dir(), Target.cross(architecture, environment)) do
      {:ok, File.read!(library)}
    end
  end

  # If the library of this archive is installed already, neither cache nor network is needed.
  defp precompiled(checksum_file, environment) do
    with {:ok, archive} <-
           Precompiled.choose(
             Mix.Project.config(),
             checksum_file,
             environment,
             Precompiled.system()
           ),
         :missing <- installed(archive),
         {:ok, library} <- Precompiled.fetch(archive, environment) do
      # Without this file the next compilation fetches the library again.
      File.mkdir_p(Path.dirname(origin()))
      File.write(origin(), origin(archive, library))
      {:ok, library}
    end
  end

  defp installed(archive) do
    with {:ok, library} <- File.read(installed_library()),
         {:ok, origin} <- File.read(origin()),
         true <- origin == origin(archive, library) do
      :current
    else
      _other -> :missing
    end
  end

  # The archive and the library that came out of it.
  defp origin(archive, library), do: "#{archive.sha256} #{Archive.sha256(library)}"
  defp origin, do: Path.join(Mix.Project.manifest_path(), "compile.barytherium_native")

  # Writing to a loaded library would kill the VM, so a new file replaces the old one.
  defp install(library, installed) do
    if File.read(installed) == {:ok, library} do
      {:noop, []}
    else
      replace(installed, library)
    end
  end

  defp replace(installed, library) do
    temporary = installed <> ".#{System.pid()}"

    with :ok <- File.mkdir_p(Path.dirname(installed)),
         :ok <- File.write(temporary, library),
         :ok <- File.rename(temporary, installed) do
      {:ok, []}
    else
      {:error, reason} ->
        File.rm(temporary)
        failure("The library cannot be written to #{installed}: #{:file.format_error(reason)}.")
    end
  end

  defp failure(message) do
    Mix.shell().error(message)

    diagnostic = %Diagnostic{
      compiler_name: "barytherium_native",
      file: Path.join(@sources, "Cargo.toml"),
      message: message,
      position: 0,
      severity: :error
    }

    {:error, [diagnostic]}
  end

  defp installed_library, do: Path.join([Mix.Project.app_path(), "priv", "native", @library])

  defp target_dir, do: Path.expand(System.get_env("CARGO_TARGET_DIR", beside_build()))
  defp beside_build, do: Path.expand("../barytherium_cargo", Mix.Project.build_path())
end
