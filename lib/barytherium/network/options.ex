defmodule Barytherium.Network.Options do
  @moduledoc false
  # The options of `Barytherium.Network.start_link/4`. `@schema` holds their types, defaults and
  # documentation. `@tcp`, `@tcp_flags` and `@tls` list the options that are passed on to `:gen_tcp`
  # and `:ssl`.

  import Barytherium.Schema, only: [name: 1, raise_unknown: 2]

  alias Barytherium.Schema

  @schema [
    secure: {:boolean, false, "Connect with TLS."},
    tls:
      {{:one_of, [:native, :otp]}, :native,
       "`:otp` uses `:ssl` of OTP for TLS. It is slower. It is used in any case for options " <>
         "that only `:ssl` knows, and `stats/1` tells which one is in use."},
    connect_timeout:
      {:timeout, 10_000,
       "Milliseconds that connecting may take: name lookup, TCP and TLS together."},
    send_timeout: {:timeout, 10_000, "Milliseconds that a write may take."},
    max_send_queue:
      {:limit, 64 * 1024 * 1024,
       "Bytes that may wait to be written. If more wait, the connection ends with " <>
         "`:enobufs`. May be `:infinity`."},
    buffer:
      {:buffer, nil,
       "Size of the socket driver's buffer in bytes. Default: the driver's, or 16 KiB with TLS."},
    receive_buffer:
      {:buffer, nil, "Size of the kernel's receive buffer in bytes. Default: the system's."},
    send_buffer:
      {:buffer, nil, "Size of the kernel's send buffer in bytes. Default: the system's."},
    first_frame_timeout:
      {:time, 5_000,
       "Milliseconds until CONNECTED must arrive. After that the connection ends with `:timeout`."},
    heartbeat_receive_allowance:
      {:time, nil,
       "Milliseconds that the peer's heart-beat may be late, in addition to the agreed " <>
         "interval. After that the connection ends with `:timeout`. Default: the interval."},
    high_water_mark:
      {:mark, 64,
       "Reading stops when the callback process has this many messages in its mailbox, and " <>
         "resumes when half of them are left. A message holds at most 256 frames and about " <>
         "1 MiB, or one larger frame. Reading also stops when " <>
         "these messages hold 32 MiB. `:infinity`: reading never stops."},
    max_header_line:
      {:size, 65_536,
       "Maximum size of a header line in bytes. A longer one ends the connection with " <>
         "`:parse_error`."},
    max_headers:
      {:size, 1_000,
       "Maximum number of header lines in a frame. More end the connection with " <>
         "`:parse_error`."},
    max_body:
      {:limit, 100 * 1024 * 1024,
       "Maximum size of a body in bytes. A larger one ends the connection with " <>
         "`:parse_error`. May be `:infinity`."},
    escapes:
      {{:one_of, [:strict, :lenient]}, :strict,
       "`:strict` ends the connection with `:parse_error` at an escape that STOMP does not " <>
         "define (`\\t`). `:lenient` keeps such escapes as they are, for brokers that write " <>
         "backslashes unescaped."},
    share_bodies:
      {:boolean, true,
       "Cut bodies of 65 bytes to 16 KiB out of shared binaries, which is faster. A process that " <>
         "keeps one of them keeps up to 8 times its size. With `false` each body is a binary of " <>
         "its own."}
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

  # Options that concern parsing only.
  @parsing ~w(max_header_line max_headers max_body escapes share_bodies)a

  @settled_text "the receive loop needs a passive, binary and raw socket"

  @type t :: %{atom() => term()}

  @doc "The longest time that a process or a timer of the VM can wait, in milliseconds."
  @spec longest_wait() :: pos_integer()
  def longest_wait, do: Schema.longest_wait()

  @doc "The schema as a Markdown list."
  @spec docs() :: String.t()
  def docs, do: Schema.docs(@schema)

  @doc "The schema as a Markdown table, for the README."
  @spec table() :: String.t()
  def table, do: Schema.table(@schema)

  @doc """
  Splits options into those of the schema, with their defaults, and those for the transport.
  Raises `ArgumentError` for an unknown option or an invalid value.
  """
  @spec split([term()]) :: {t(), [term()]}
  def split(opts) do
    {options, others} = Schema.split(opts, @schema)
    transport = Enum.reject(others, &(&1 in @settled))
    Enum.each(transport, &validate_transport!/1)
    unless options.secure, do: Enum.each(transport, &refuse_tls!/1)
    {options, transport}
  end

  @doc "The names of all options, those for the transport included."
  @spec names() :: [atom()]
  def names, do: Keyword.keys(@schema) ++ @tcp ++ @tls ++ @tcp_flags

  @doc "Checks options that concern parsing only. Returns them with all defaults."
  @spec parsing(keyword()) :: t()
  def parsing(opts) do
    case split(opts) do
      {options, []} ->
        for {name, _value} <- opts, name not in @parsing, do: raise_unknown(name, @parsing)
        options

      {_options, [option | _more]} ->
        raise_unknown(name(option), @parsing)
    end
  end

  @doc "Splits options for the transport into those of `:gen_tcp` and those for TLS."
  @spec split_tls([term()]) :: {[term()], keyword()}
  def split_tls(transport), do: Enum.split_with(transport, &(name(&1) not in @tls))

  @doc "The options in `opts` that the receive loop takes."
  @spec receiving([term()]) :: keyword()
  def receiving(opts) do
    names = ~w(first_frame_timeout heartbeat_receive_allowance high_water_mark)a ++ @parsing
    for {name, value} <- opts, name in names, do: {name, value}
  end

  @doc "The limits of the native parser."
  @spec limits(t()) :: map()
  def limits(options) do
    %{
      max_header_line: options.max_header_line,
      max_headers: options.max_headers,
      max_body: if(options.max_body == :infinity, do: Schema.unlimited(), else: options.max_body),
      keep_undefined_escapes: options.escapes == :lenient,
      share_bodies: options.share_bodies
    }
  end

  @doc "The options of the native connection, from the state of a receive loop."
  @spec connection(map(), boolean(), nil | reference()) :: map()
  def connection(%{options: options, hb_recv: hb_recv} = loop, show_econnreset, tls) do
    options
    |> Map.take([:first_frame_timeout, :heartbeat_receive_allowance])
    |> Map.merge(%{
      hb_recv: hb_recv,
      tls: tls,
      show_econnreset: show_econnreset,
      high_water_mark: high_water_mark(loop)
    })
  end

  # This loop's callback process waits for the loop to end. Until then it takes no messages, so
  # back-pressure would stop the loop for ever.
  defp high_water_mark(%{own_listener: true}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: :infinity}}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: mark}}), do: mark

  defp validate_transport!(option) do
    name = name(option)

    cond do
      name in @settled_names -> raise ArgumentError, "option #{inspect(name)}: #{@settled_text}"
      name in @tcp and is_tuple(option) -> check_value!(option)
      name in @tls and is_tuple(option) -> :ok
      name in @tcp_flags and is_atom(option) -> :ok
      true -> raise_unknown(name, names())
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
