defmodule Barytherium.Build.Target do
  @moduledoc false
  # Which prebuilt library a system needs. The names are Rust's target triples.

  @targets ~w(
    aarch64-apple-darwin
    aarch64-unknown-linux-gnu
    aarch64-unknown-linux-musl
    x86_64-apple-darwin
    x86_64-unknown-linux-gnu
    x86_64-unknown-linux-musl
  )
  # A library of NIF version 2.16 loads wherever the VM has 2.16 or a later 2.x: OTP 24 and later.
  # Keep it equal to rustler's feature in native/barytherium_nif/Cargo.toml.
  @nif_version "2.16"

  @doc "The targets that releases have a library for."
  def all, do: @targets

  def nif_version, do: @nif_version

  @doc """
  The target for an architecture as `:erlang.system_info(:system_architecture)` names it.

  As for `rustler_precompiled`, `TARGET_ARCH`, `TARGET_OS` and `TARGET_ABI` replace parts of it. Nerves
  sets them when it builds for a device.
  """
  @spec find(String.t(), %{String.t() => String.t()}) :: {:ok, String.t()} | {:error, String.t()}
  def find(architecture, environment) do
    triple = triple(architecture, environment)

    if triple in @targets do
      {:ok, triple}
    else
      {:error,
       "Barytherium has no prebuilt library for #{triple}. It has libraries for " <>
         "#{Enum.join(@targets, ", ")}."}
    end
  end

  @doc """
  The target that cargo has to build for, or `nil` for that of this system.
  """
  @spec cross(String.t(), %{String.t() => String.t()}) :: String.t() | nil
  def cross(architecture, environment) do
    triple = triple(architecture, environment)
    if triple != triple(architecture, %{}), do: triple
  end

  @doc "Whether a VM of this NIF version loads the prebuilt libraries."
  @spec check_nif_version(String.t()) :: :ok | {:error, String.t()}
  def check_nif_version(version) do
    [major, minor] = numbers(version)
    [our_major, our_minor] = numbers(@nif_version)

    if major == our_major and minor >= our_minor do
      :ok
    else
      {:error,
       "Barytherium's library is for NIF version #{@nif_version} and later 2.x (OTP 24 and later), " <>
         "and this Erlang/OTP has #{version}."}
    end
  end

  defp numbers(version), do: version |> String.split(".") |> Enum.map(&String.to_integer/1)

  # Vendors differ between distributions, and some leave the ABI out (`x86_64-redhat-linux`).
  defp triple(architecture, environment) do
    [arch | rest] = String.split(architecture, "-")
    {before, found} = Enum.split_while(rest, &(not known_os?(&1)))

    case found do
      [] when before == [] -> with_environment(arch, nil, nil, architecture, environment)
      [] -> with_environment(arch, List.last(before), nil, architecture, environment)
      [os | abi] -> with_environment(arch, os, List.first(abi), architecture, environment)
    end
  end

  defp known_os?(part), do: String.starts_with?(part, ["linux", "darwin"])

  defp with_environment(arch, os, abi, architecture, environment) do
    arch = arch(set(environment, "TARGET_ARCH") || arch)
    abi = set(environment, "TARGET_ABI") || abi || "gnu"

    case set(environment, "TARGET_OS") || os do
      "linux" <> _ -> "#{arch}-unknown-linux-#{abi}"
      "darwin" <> _ -> "#{arch}-apple-darwin"
      _other -> architecture
    end
  end

  defp arch("amd64"), do: "x86_64"
  defp arch("arm64"), do: "aarch64"
  defp arch(arch), do: arch

  defp set(environment, name) do
    case environment[name] do
      "" -> nil
      value -> value
    end
  end
end
