defmodule Barytherium.Build.Cargo do
  @moduledoc false
  # Builds the native library. Cargo decides what to rebuild.

  @crate "barytherium_nif"
  # rustler requires this version. Keep it equal to `rust-version` in Cargo.toml.
  @required "1.91.0"
  @hint "Debian 12 and 13 have it as cargo-web; elsewhere see https://rustup.rs."
  @sources Path.expand("../../..", __DIR__)

  @doc "The version of Rust that is needed."
  def required, do: @required

  @doc "Builds for `target`, or if it is `nil`, for what cargo builds by default."
  @spec build(Path.t(), String.t() | nil) :: {:ok, library :: Path.t()} | {:error, String.t()}
  def build(target_dir, target \\ nil) do
    with {:ok, cargo} <- find() do
      run(cargo, target_dir, target)
    end
  end

  @doc "The target that cargo builds for by default."
  @spec host() :: {:ok, String.t()} | {:error, String.t()}
  def host do
    with {:ok, cargo} <- find() do
      {output, 0} = System.cmd(cargo, ["-vV"])
      [_, host] = Regex.run(~r/^host: (\S+)$/m, output)
      {:ok, host}
    end
  end

  # The first cargo that is new enough. An old one of the system may come before rustup's in PATH.
  defp find do
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
    # rustup may say on stderr what it does first.
    {output, _status} = System.cmd(cargo, ["--version"])

    case Regex.run(~r/^cargo (\d+\.\d+\.\d+)/m, output) do
      [_, version] -> version
      nil -> "broken: " <> complaint(cargo)
    end
  end

  # A line, because rustup may print a stack trace.
  defp complaint(cargo) do
    {output, _status} = System.cmd(cargo, ["--version"], stderr_to_stdout: true)
    output |> String.trim() |> String.split("\n", parts: 2) |> hd()
  end

  defp new_enough?(version) do
    case Version.parse(version) do
      {:ok, version} -> Version.compare(version, @required) != :lt
      :error -> false
    end
  end

  defp run(cargo, target_dir, target) do
    args = ["build", "--release", "--locked", "--package", @crate] ++ progress(target_dir)
    args = args ++ ["--target-dir", target_dir] ++ if(target, do: ["--target", target], else: [])

    # Where the library is depends on cargo's own configuration. Cargo tells it on stdout; what it says
    # to people goes to stderr.
    args = args ++ ["--message-format", "json-render-diagnostics"]
    # The environment stays as it is, so RUSTC_WRAPPER and similar settings work. Cargo reads
    # .cargo/config.toml from the directory that it runs in.
    case System.cmd(cargo, args, cd: @sources, env: linker(target)) do
      {messages, 0} -> library(messages)
      {_output, status} -> {:error, failure(status, target)}
    end
  end

  # The first build takes so long that somebody may think it hangs. Cargo shows a bar on a terminal, and a line for
  # each crate elsewhere. Later it would say each time that there is nothing to do.
  defp progress(target_dir) do
    if built?(target_dir) do
      ["--quiet"]
    else
      IO.puts("Building the native library of Barytherium, once. It takes about a minute.")
      []
    end
  end

  # With a target, the files are in a directory of its name.
  defp built?(target_dir) do
    names =
      case File.ls(target_dir) do
        {:ok, names} -> names
        {:error, _none} -> []
      end

    Enum.any?(["" | names], &File.dir?(Path.join([target_dir, &1, "release", "deps"])))
  end

  # The compiler of a cross build links too. Nerves names it so.
  defp linker(nil), do: []

  defp linker(target) do
    name = "CARGO_TARGET_#{target |> String.upcase() |> String.replace("-", "_")}_LINKER"
    # With arguments it is no program.
    compiler = System.find_executable(System.get_env("CC", ""))
    if compiler && !System.get_env(name), do: [{name, compiler}], else: []
  end

  defp failure(status, nil), do: "cargo could not build #{@crate} (exit status #{status})."

  defp failure(status, target) do
    "cargo could not build #{@crate} for #{target} (exit status #{status}). It needs Rust's library for that " <>
      "(rustup target add #{target}), and in CC a compiler that builds for it. TARGET_ARCH, TARGET_OS and " <>
      "TARGET_ABI ask for this target."
  end

  defp library(messages) do
    case Regex.run(~r/"([^"]*lib#{@crate}\.(?:so|dylib))"/, messages) do
      [_all, path] -> {:ok, path}
      nil -> {:error, "cargo did not say where it has put #{@crate}."}
    end
  end
end
