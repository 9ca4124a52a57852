defmodule Barytherium.Connection.Options do
  @moduledoc false
  # The options of `Barytherium.Connection.connect/3`. `@schema` holds the types, defaults and
  # documentation of our own. `@tcp`, `@tcp_flags` and `@tls` list the options that are passed on to
  # `:gen_tcp` and `:ssl`.

  import Barytherium.Schema, only: [name: 1, raise_unknown: 2]

  alias Barytherium.Connection.{Http, WebSocket}
  alias Barytherium.{Schema, Text}

  @schema [
    secure: {:boolean, false, "Connect with TLS."},
    tls:
      {{:one_of, [:native, :otp]}, :native,
       "`:otp` uses `:ssl` of OTP for TLS. It is slower. It is used in any case for options " <>
         "that only `:ssl` knows, and `stats/1` tells which one is in use."},
    websocket:
      {{:secret, {:is, &__MODULE__.path?/1, "a path that begins with a slash"}}, nil,
       "Speak STOMP in a WebSocket, at this path: `\"/ws\"`, or `\"/ws?client=a\"`."},
    upgrade_headers:
      {{:secret,
        {:is, &__MODULE__.upgrade_headers?/1,
         "a list of {name, value} that the handshake does not set itself, a function that returns one, or {module, " <>
           "function, arguments}"}}, nil,
       "Headers for the opening handshake of a WebSocket: `authorization`, or `cookie`. A list of `{name, value}`, " <>
         "or a function (or `{module, function, arguments}`) that returns one and is called for each connection."},
    proxy:
      {{:secret, {:is, &__MODULE__.proxy?/1, "http://user:pass@host:port"}}, nil,
       "An HTTP proxy to connect through: `\"http://user:pass@host:port\"`. It looks up the server's name."},
    connect_timeout:
      {:timeout, 10_000,
       "Milliseconds that connecting may take: name lookup, proxy, TCP, TLS and WebSocket together."},
    send_timeout:
      {:timeout, 10_000, "Milliseconds that a write may take, a large one for each MiB."},
    buffer:
      {:buffer, nil,
       "Size of the socket driver's buffer in bytes. Default: the driver's, or 16 KiB with TLS."},
    receive_buffer:
      {:buffer, nil, "Size of the kernel's receive buffer in bytes. Default: the system's."},
    send_buffer:
      {:buffer, nil, "Size of the kernel's send buffer in bytes. Default: the system's."}
  ]

  # Options of `:gen_tcp.connect/3`, except those that the receive loop sets itself: `:active`,
  # `:mode`, `:packet` and the like.
  @tcp ~w(bind_to_device delay_send exit_on_close fd high_msgq_watermark high_watermark ifaddr
          inet_backend ip ipv6_v6only keepalive linger low_msgq_watermark low_watermark netns nodelay
          nopush port priority raw recbuf reuseaddr reuseport send_timeout_close show_econnreset
          sndbuf tclass tcp_module tos ttl user_timeout)a
  @tcp_flags ~w(inet inet6 local)a

  # These options are accepted because they repeat what the receive loop sets.
  @settled [:binary, {:mode, :binary}, {:active, false}, {:packet, :raw}, {:packet, 0}]
  @settled_names [:binary, :list, :mode, :active, :packet, :header, :deliver]

  # Client options of `:ssl.connect/3`.
  @tls ~w(alpn_advertised_protocols allow_any_ca_purpose beast_mitigation cacertfile cacerts
          cert certfile certificate_authorities certs_keys ciphers client_preferred_next_protocols
          crl_cache crl_check customize_hostname_check cert_policy_opts depth early_data eccs fallback
          hibernate_after keep_secrets key key_update_at keyfile log_alert log_level
          max_fragment_length max_handshake_size middlebox_comp_mode ocsp_nonce
          ocsp_responder_certs ocsp_stapling padding_check partial_chain password protocol psk_identity
          receiver_spawn_opts reuse_session reuse_sessions secure_renegotiate sender_spawn_opts
          server_name_indication session_tickets signature_algs signature_algs_cert
          srp_identity stapling supported_groups use_srtp use_ticket user_lookup_fun verify
          verify_fun versions)a

  @settled_text "the receive loop needs a passive, binary and raw socket"

  @doc "The types, defaults and documentation of our own options."
  @spec schema() :: Schema.t()
  def schema, do: @schema

  @doc "The names of all options, those for the transport included."
  @spec names() :: [atom()]
  def names, do: Keyword.keys(@schema) ++ @tcp ++ @tls ++ @tcp_flags

  @doc """
  Splits options into our own, with their defaults, those of `:gen_tcp`, and those for TLS. Raises
  `ArgumentError` for an unknown option or an invalid value.
  """
  @spec split([term()]) :: {%{atom() => term()}, [term()], keyword()}
  def split(opts) do
    {options, others} = Schema.split(opts, @schema)
    check_transport!(others, options, names())
    options = Map.update!(options, :proxy, &(&1 && elem(Http.proxy(&1), 1)))
    {tls, tcp} = others |> Enum.reject(&(&1 in @settled)) |> Enum.split_with(&(name(&1) in @tls))
    {options, tcp, tls}
  end

  @doc "The headers for the opening handshake of a WebSocket. Calls the function for them."
  @spec upgrade_headers(term()) ::
          {:ok, Http.headers()} | {:error, {:upgrade_headers, String.t()}}
  def upgrade_headers(nil), do: {:ok, []}

  # The text does not show them, nor why the function failed: that may be secret too.
  def upgrade_headers(given) do
    case reveal(given) do
      # A function of a client that calls the user's.
      {:error, {:upgrade_headers, what}} when is_binary(what) ->
        {:error, {:upgrade_headers, what}}

      headers ->
        if WebSocket.headers?(headers),
          do: {:ok, headers},
          else: {:error, {:upgrade_headers, "it returned no such headers"}}
    end
  catch
    kind, reason -> {:error, {:upgrade_headers, Text.failure(kind, reason)}}
  end

  defp reveal(headers) when is_list(headers), do: headers
  defp reveal(callable), do: Schema.call(callable)

  @doc false
  def path?(path), do: is_binary(path) and path =~ ~r{\A/[!-~]*\z} and not (path =~ "#")

  @doc false
  def upgrade_headers?(given), do: Schema.callable?(given) or WebSocket.headers?(given)

  @doc false
  def proxy?(url), do: Http.proxy(url) != :error

  @doc """
  Raises `ArgumentError` unless all of `opts` are valid options for the transport, with `options` of our own. The message
  about an unknown one names the nearest of `known`.
  """
  @spec check_transport!([term()], %{atom() => term()}, [atom()]) :: :ok
  def check_transport!(opts, options, known) do
    for option <- opts, option not in @settled do
      validate!(option, known)
      options.secure || refuse_tls!(option)
    end

    if options.upgrade_headers && !options.websocket do
      raise ArgumentError,
            "option :upgrade_headers is for a WebSocket, and websocket: \"/path\" is missing"
    end

    :ok
  end

  defp validate!(option, known) do
    name = name(option)

    cond do
      name in @settled_names -> raise ArgumentError, "option #{inspect(name)}: #{@settled_text}"
      name in @tcp and is_tuple(option) -> check_value!(option)
      name in @tls and is_tuple(option) -> :ok
      name in @tcp_flags and is_atom(option) -> :ok
      true -> raise_unknown(name, known)
    end
  end

  # `:gen_tcp` exits its caller for such values.
  defp check_value!({name, value}) do
    unless transport_value?(name, value),
      do: raise(ArgumentError, "invalid value for option #{inspect(name)}: #{inspect(value)}")
  end

  defp check_value!(_raw), do: :ok

  defp transport_value?(name, value)
       when name in ~w(delay_send exit_on_close ipv6_v6only keepalive nodelay nopush reuseaddr
                       reuseport send_timeout_close show_econnreset)a,
       do: is_boolean(value)

  defp transport_value?(name, value) when name in ~w(port)a, do: value in 0..65_535
  defp transport_value?(name, value) when name in ~w(ip ifaddr)a, do: address?(value)
  defp transport_value?(:inet_backend, value), do: value in [:inet, :socket]

  defp transport_value?(:linger, value),
    do: match?({on, seconds} when is_boolean(on) and is_integer(seconds) and seconds >= 0, value)

  defp transport_value?(name, value) when name in ~w(recbuf sndbuf)a,
    do: Schema.valid?(:buffer, value)

  defp transport_value?(_name, _value), do: true

  defp address?({:local, path}), do: is_binary(path) or is_list(path)
  defp address?(value) when value in [:any, :loopback], do: true
  defp address?(value) when is_map(value), do: true
  defp address?(value) when is_tuple(value), do: is_list(:inet.ntoa(value))
  defp address?(_other), do: false

  # A TLS option without `secure: true` is a mistake. The connection would not be encrypted.
  defp refuse_tls!(option) do
    if name(option) in @tls do
      raise ArgumentError,
            "option #{inspect(name(option))} is for TLS, and secure: true is missing"
    end
  end
end
