defmodule Barytherium.Connection.Tls do
  @moduledoc false
  # Chooses between native TLS and `:ssl`, and completes the options of `:ssl.connect/4`. Its defaults
  # differ between OTP releases. With these options the server is verified on every release.

  require Logger

  alias Barytherium.Connection.TlsOptions

  @type plan ::
          {:native, Barytherium.Native.tls_settings(), String.t()}
          | {:otp, [term()]}
          | {:error, {:options, tuple()}}

  @doc "How to connect to `host` with the TLS options `opts`; `tls` is the option of that name."
  @spec plan(term(), keyword(), :native | :otp) :: plan()
  def plan(host, opts, tls) do
    if opts[:verify] == :verify_none, do: warn_once()
    plan = if tls == :otp, do: :otp, else: TlsOptions.plan(host, opts, &system_certificates/0)
    if plan == :otp, do: {:otp, options(host, opts)}, else: plan
  end

  @doc """
  The same for `:ssl` on a connection through a proxy. There it would verify an address of a server as the proxy's.
  """
  @spec behind_proxy(term(), [term()]) :: {:ok, {:otp, [term()]}} | {:error, {:options, tuple()}}
  def behind_proxy(host, opts) do
    named? = List.keymember?(opts, :server_name_indication, 0)

    if named? or {:verify, :verify_none} in opts,
      do: {:ok, {:otp, opts}},
      else: {:error, {:options, {:address_behind_proxy, host}}}
  end

  # Adds to `opts` the options that are missing for a connection to `host`.
  defp options(host, opts) do
    opts = Enum.map(opts, &charlist/1)
    given = for option when is_tuple(option) <- opts, do: elem(option, 0)

    case List.keyfind(opts, :verify, 0) do
      {:verify, :verify_none} ->
        opts

      _verify ->
        added = [verify: :verify_peer] ++ name(host) ++ hostname_check() ++ trusted(given)
        opts ++ Enum.reject(added, fn {name, _value} -> name in given end)
    end
  end

  defp charlist({:server_name_indication, name}) when is_binary(name),
    do: {:server_name_indication, to_charlist(name)}

  defp charlist(option), do: option

  # `:ssl` is given an address to connect to, but the certificate must be for the name.
  defp name(host) when is_binary(host), do: name(to_charlist(host))
  defp name(host) when is_atom(host), do: name(Atom.to_charlist(host))
  defp name({:local, _path}), do: []
  defp name(host) when is_tuple(host), do: []

  defp name(host) do
    # Server name indication is for names only. `:ssl` checks the certificate for an address too.
    case :inet.parse_strict_address(host) do
      {:ok, _address} -> []
      {:error, :einval} -> [server_name_indication: host]
    end
  end

  # With this a wildcard in a certificate matches one label.
  defp hostname_check,
    do: [
      customize_hostname_check: [match_fun: :public_key.pkix_verify_hostname_match_fun(:https)]
    ]

  defp trusted(given) do
    if :cacerts in given or :cacertfile in given, do: [], else: [cacerts: system_certificates()]
  end

  defp system_certificates do
    :public_key.cacerts_get()
  rescue
    error ->
      Logger.error("TLS: the system's certificates cannot be read: #{Exception.message(error)}")
      []
  end

  defp warn_once do
    unless :persistent_term.get(__MODULE__, false) do
      :persistent_term.put(__MODULE__, true)

      Logger.warning(
        "Barytherium connects with TLS and verify: :verify_none: anybody on the way can be the server"
      )
    end
  end

  @doc "The reason for an alert. `:ssl` has none of its own for a certificate of another host."
  @spec reason(atom(), iodata()) :: atom()
  def reason(alert, text) do
    if to_string(text) =~ "hostname_check_failed", do: :hostname_check_failed, else: alert
  end

  @doc "Describes an options error of `:ssl` without values, because one of them may be a key."
  @spec describe(term()) :: String.t()
  def describe({:options, :incompatible, names}), do: "incompatible: #{inspect(names(names))}"
  def describe({:options, {:incompatible, names}}), do: "incompatible: #{inspect(names(names))}"

  def describe({:options, {:address_behind_proxy, _host}}),
    do: "through a proxy `:ssl` cannot verify an address: give a name, or :server_name_indication"

  def describe({:options, {name, _value}}) when is_atom(name), do: to_string(name)

  def describe({:options, {name, file, reason}}) when is_atom(name),
    do: "#{name}: #{inspect(file)}: #{inspect(reason)}"

  def describe(_other), do: "see the documentation of :ssl.connect/3"

  defp names(options) do
    for option <- List.wrap(options), do: if(is_tuple(option), do: elem(option, 0), else: option)
  end
end
