defmodule Barytherium.Network.Options do
  @moduledoc false
  # The options of `Barytherium.Network.start_link/4`: this table is their schema, their defaults
  # and their documentation. Others are passed on to `:gen_tcp` and `:ssl`, from a list of those that
  # make sense here.

  import Bitwise, only: [<<<: 2]

  @unlimited 0xFFFF_FFFF_FFFF_FFFF
  # The longest time that a process can wait for, in milliseconds, and the largest buffer that the
  # operating system can be asked for.
  @longest 0xFFFF_FFFF
  @largest (1 <<< 31) - 1

  @schema [
    secure: {:boolean, false, "Connect with TLS."},
    connect_timeout:
      {:timeout, 10_000,
       "Milliseconds that connecting may take: looking up the name, TCP and TLS together."},
    send_timeout: {:timeout, 10_000, "Milliseconds that a write may take."},
    max_send_queue:
      {:limit, 64 * 1024 * 1024,
       "Bytes that may wait to be written, beyond which the connection ends with `:enobufs`. " <>
         "May be `:infinity`."},
    buffer:
      {:buffer, nil,
       "Bytes of the socket driver's own buffer. Default: the system's; with TLS 16 KiB."},
    receive_buffer:
      {:buffer, nil, "Bytes of the kernel's receive buffer. Default: the system's."},
    send_buffer: {:buffer, nil, "Bytes of the kernel's send buffer. Default: the system's."},
    first_frame_timeout:
      {:time, 5_000, "Milliseconds until CONNECTED must have come, or else `:timeout`."},
    heartbeat_receive_allowance:
      {:time, nil,
       "Milliseconds that a heart-beat may be late, beyond the agreed interval, before the " <>
         "connection ends with `:timeout`. Default: as long again as the interval."},
    high_water_mark:
      {:mark, 64,
       "Messages in the callback process's mailbox at which no more is read from the socket, " <>
         "until half of them are left. Each holds at most 256 frames, and some 1 MiB of them " <>
         "or a larger one; 32 MiB are too many in any case. `:infinity` never stops reading."},
    max_header_line:
      {:size, 65_536, "Bytes of a header line, beyond which the peer is a `:parse_error`."},
    max_headers: {:size, 1_000, "Header lines of a frame, likewise."},
    max_body: {:limit, 100 * 1024 * 1024, "Bytes of a body, likewise. May be `:infinity`."},
    escapes:
      {:escapes, :strict,
       "`:lenient` keeps escapes that STOMP does not define (`\\t`) as they are, instead of " <>
         "refusing them, for brokers that write backslashes unescaped."}
  ]

  # What `:gen_tcp.connect/3` takes. What the receive loop relies on is not among them: `:active`,
  # `:mode`, `:packet` and the like.
  @tcp ~w(bind_to_device delay_send exit_on_close fd high_msgq_watermark high_watermark ifaddr
          inet_backend ip ipv6_v6only keepalive linger low_msgq_watermark low_watermark netns nodelay
          nopush port priority raw recbuf reuseaddr reuseport send_timeout_close show_econnreset
          sndbuf tclass tcp_module tos ttl user_timeout)a
  @tcp_flags ~w(inet inet6 local)a

  # What is so in any case, and may be said.
  @settled [:binary, {:mode, :binary}, {:active, false}, {:packet, :raw}, {:packet, 0}]
  @settled_names [:binary, :list, :mode, :active, :packet, :header, :deliver]

  # What `:ssl.connect/3` takes from a client.
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

  # Those of the receive loop, which `Receiver` takes, and of parsing alone.
  @parsing ~w(max_header_line max_headers max_body escapes)a

  @settled_text "the receive loop needs a passive, binary and raw socket"

  @type t :: %{atom() => term()}

  @doc "The schema as a Markdown list."
  @spec docs() :: String.t()
  def docs do
    Enum.map_join(@schema, "\n", fn {name, {_type, default, text}} ->
      default = if is_nil(default), do: "", else: " Default: `#{inspect(default)}`."
      "  * `:#{name}` - #{text}#{default}"
    end)
  end

  @doc "The schema as a Markdown table, for the README."
  @spec table() :: String.t()
  def table do
    rows =
      for {name, {_type, default, text}} <- @schema do
        default = if is_nil(default), do: "", else: "`#{inspect(default)}`"
        "| `#{name}` | #{default} | #{text} |\n"
      end

    "| option | default | meaning |\n| --- | --- | --- |\n#{rows}"
  end

  @doc """
  Options with their defaults, and what is left for the transport. Raises `ArgumentError` for an
  option that does not exist, or has a value that it cannot have.
  """
  @spec split([term()]) :: {t(), [term()]}
  def split(opts) when is_list(opts) do
    refuse_twice!(opts)
    {ours, transport} = opts |> Enum.reject(&(&1 in @settled)) |> Enum.split_with(&ours?/1)
    Enum.each(ours, &validate!/1)
    Enum.each(transport, &validate_transport!/1)
    defaults = Map.new(@schema, fn {name, {_type, default, _text}} -> {name, default} end)
    options = Enum.into(ours, defaults)
    unless options.secure, do: Enum.each(transport, &refuse_tls!/1)
    {options, transport}
  end

  # Without showing them: one may be a password.
  def split(_other), do: raise(ArgumentError, "the options are not a list")

  # Of two, one part of a program could take the first and another the last.
  defp refuse_twice!(opts) do
    names = for option <- opts, name = name(option), name != :raw, do: name

    case names -- Enum.uniq(names) do
      [] -> :ok
      [name | _more] -> raise ArgumentError, "option #{inspect(name)} is given twice"
    end
  end

  @doc "The same for options that are about parsing alone."
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

  @doc "Those of `opts` that the receive loop takes."
  @spec receiving([term()]) :: keyword()
  def receiving(opts) do
    names = ~w(first_frame_timeout heartbeat_receive_allowance high_water_mark)a ++ @parsing
    for {name, value} <- opts, name in names, do: {name, value}
  end

  @doc "What the native parser is to accept."
  @spec limits(t()) :: map()
  def limits(options) do
    %{
      max_header_line: options.max_header_line,
      max_headers: options.max_headers,
      max_body: if(options.max_body == :infinity, do: @unlimited, else: options.max_body),
      keep_undefined_escapes: options.escapes == :lenient
    }
  end

  @doc "How the native connection is to behave, for a loop's state."
  @spec connection(map(), boolean()) :: map()
  def connection(%{options: options, hb_recv: hb_recv} = loop, show_econnreset) do
    options
    |> Map.take([:first_frame_timeout, :heartbeat_receive_allowance])
    |> Map.merge(%{
      hb_recv: hb_recv,
      show_econnreset: show_econnreset,
      high_water_mark: high_water_mark(loop)
    })
  end

  # The listener of this loop waits for it to end: it takes nothing before.
  defp high_water_mark(%{own_listener: true}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: :infinity}}), do: nil
  defp high_water_mark(%{options: %{high_water_mark: mark}}), do: mark

  defp ours?({name, _value}) when is_atom(name), do: Keyword.has_key?(@schema, name)
  defp ours?(_other), do: false

  defp validate!({name, value}) do
    {type, _default, _text} = @schema[name]

    unless valid?(type, value) do
      raise ArgumentError,
            "invalid value for option #{inspect(name)}: #{inspect(value)}, and not #{expected(type)}"
    end
  end

  defp validate_transport!(option) do
    name = name(option)

    cond do
      name in @settled_names -> raise ArgumentError, "option #{inspect(name)}: #{@settled_text}"
      name in @tcp and is_tuple(option) -> check_value!(option)
      name in @tls and is_tuple(option) -> :ok
      name in @tcp_flags and is_atom(option) -> :ok
      true -> raise_unknown(name, Keyword.keys(@schema) ++ @tcp ++ @tls ++ @tcp_flags)
    end
  end

  # Values that `:gen_tcp` would end its caller for.
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

  defp transport_value?(name, value) when name in ~w(recbuf sndbuf)a, do: valid?(:buffer, value)
  defp transport_value?(_name, _value), do: true

  defp address?({:local, path}), do: is_binary(path) or is_list(path)
  defp address?(value) when value in [:any, :loopback], do: true
  defp address?(value) when is_map(value), do: true
  defp address?(value) when is_tuple(value), do: is_list(:inet.ntoa(value))
  defp address?(_other), do: false

  # Whoever says how to verify a server does not mean a connection without TLS.
  defp refuse_tls!(option) do
    if name(option) in @tls do
      raise ArgumentError,
            "option #{inspect(name(option))} is for TLS, and secure: true is missing"
    end
  end

  defp name(option) when is_tuple(option) and tuple_size(option) > 0, do: elem(option, 0)
  defp name(option), do: option

  # What is no name may be something else, with a password in it.
  defp shown(name) when is_atom(name), do: inspect(name)
  defp shown(_other), do: "that is no atom and no tuple with one"

  defp raise_unknown(name, known) do
    nearest = Enum.max_by(known, &String.jaro_distance(to_string(&1), text(name)))

    raise ArgumentError,
          "unknown option #{shown(name)}; the nearest that there is: #{inspect(nearest)}"
  end

  defp text(name) when is_atom(name), do: to_string(name)
  defp text(_other), do: ""

  defp valid?(:boolean, value), do: is_boolean(value)
  defp valid?(:size, value), do: is_integer(value) and value in 0..@unlimited
  defp valid?(:buffer, value), do: is_integer(value) and value in 1..@largest
  defp valid?(:time, value), do: is_integer(value) and value in 0..@longest
  defp valid?(:timeout, value), do: value == :infinity or valid?(:time, value)
  defp valid?(:mark, value), do: value == :infinity or (valid?(:size, value) and value > 0)
  defp valid?(:limit, value), do: value == :infinity or valid?(:size, value)
  defp valid?(:escapes, value), do: value in [:strict, :lenient]

  defp expected(:boolean), do: "true or false"
  defp expected(:size), do: "an integer from 0 on"
  defp expected(:buffer), do: "an integer from 1 to #{@largest}"
  defp expected(:time), do: "an integer from 0 to #{@longest}"
  defp expected(:timeout), do: expected(:time) <> ", or :infinity"
  defp expected(:mark), do: "an integer from 1 on, or :infinity"
  defp expected(:limit), do: expected(:size) <> ", or :infinity"
  defp expected(:escapes), do: ":strict or :lenient"
end
