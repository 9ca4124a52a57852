defmodule Barytherium.Build.Precompiled do
  @moduledoc false
  # Takes the native library from a release. Nothing of an archive is used before its checksum is the
  # one that the package carries.

  alias Barytherium.Build.{Archive, Cargo, Download, Target}

  @type archive :: %{name: String.t(), sha256: String.t(), url: String.t(), cached: Path.t()}
  @type system :: %{architecture: String.t(), nif_version: String.t()}

  @doc "What the VM says about this system."
  @spec system() :: system()
  def system do
    %{
      architecture: to_string(:erlang.system_info(:system_architecture)),
      nif_version: to_string(:erlang.system_info(:nif_version))
    }
  end

  @doc "The archive that this system needs. `project` has `:version` and `:source_url`."
  @spec choose(keyword(), Path.t(), map(), system()) :: {:ok, archive()} | {:error, String.t()}
  def choose(project, checksum_file, environment, system) do
    with :ok <- Target.check_nif_version(system.nif_version),
         {:ok, target} <- Target.find(system.architecture, environment),
         name = Archive.name(project[:version], target),
         {:ok, checksums} <- Archive.read_checksums(checksum_file),
         {:ok, sha256} <- Archive.expected(checksums, name),
         {:ok, base} <- base_url(project, environment) do
      {:ok,
       %{
         name: name,
         sha256: sha256,
         url: base <> "/" <> name,
         cached: Path.join(cache(environment), name)
       }}
    else
      {:error, message} -> {:error, with_hint(message)}
    end
  end

  @doc "The library in the archive, from the cache or from the release."
  @spec fetch(archive(), map()) :: {:ok, binary()} | {:error, String.t()}
  def fetch(archive, environment) do
    with {:ok, bytes} <- cached_or_downloaded(archive, environment),
         {:ok, library} <- Archive.unpack(bytes, archive.name) do
      {:ok, library}
    else
      {:error, message} -> {:error, with_hint(message)}
    end
  end

  # A cached archive is verified each time, because anything may have happened to the file since.
  defp cached_or_downloaded(archive, environment) do
    with {:ok, bytes} <- File.read(archive.cached),
         :ok <- Archive.verify(bytes, archive.name, archive.sha256) do
      {:ok, bytes}
    else
      {:error, _missing_or_wrong} -> download(archive, environment)
    end
  end

  defp download(archive, environment) do
    Mix.shell().info("Downloading #{archive.name}")

    with {:ok, bytes} <- Download.get(archive.url, environment),
         :ok <- Archive.verify(bytes, archive.name, archive.sha256) do
      cache(archive, bytes)
      {:ok, bytes}
    end
  end

  # The cache only saves time. If it cannot be written, the next build downloads again.
  defp cache(archive, bytes) do
    temporary = "#{archive.cached}.#{System.pid()}"

    with :ok <- File.mkdir_p(Path.dirname(archive.cached)),
         :ok <- File.write(temporary, bytes),
         :ok <- File.rename(temporary, archive.cached) do
      :ok
    else
      _error -> File.rm(temporary)
    end
  end

  defp base_url(project, environment) do
    case {environment["BARYTHERIUM_BASE_URL"], project[:source_url]} do
      {unset, nil} when unset in [nil, ""] ->
        {:error, "mix.exs names no repository whose releases have the library"}

      {unset, source} when unset in [nil, ""] ->
        {:ok, "#{source}/releases/download/v#{project[:version]}"}

      {url, _source} ->
        {:ok, String.trim_trailing(url, "/")}
    end
  end

  defp cache(environment) do
    case environment["BARYTHERIUM_CACHE_PATH"] do
      unset when unset in [nil, ""] -> user_cache(environment)
      path -> Path.expand(path)
    end
  end

  # Without a home directory there is no user's cache. Anybody can write to the temporary directory, and
  # that does no harm because the archive is verified in memory.
  defp user_cache(environment) do
    cond do
      System.user_home() == nil -> Path.join(System.tmp_dir!(), "barytherium")
      environment["MIX_XDG"] -> :filename.basedir(:user_cache, "barytherium", %{os: :linux})
      true -> :filename.basedir(:user_cache, "barytherium")
    end
  end

  defp with_hint(message) do
    message <>
      "\nBARYTHERIUM_BUILD=1 builds the library instead, with cargo (Rust #{Cargo.required()} or " <>
      "later). BARYTHERIUM_NIF_PATH takes one that is built already."
  end
end
