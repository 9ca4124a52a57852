defmodule Barytherium.Connection.Http do
  @moduledoc false
  # What HTTP/1.1 is needed for before STOMP begins: a request without a body, and the head of the answer. A proxy is
  # asked for a tunnel (RFC 9110, 9.3.6), and a server for a WebSocket (`Barytherium.Connection.WebSocket`).

  alias Barytherium.Connection.{Deadline, Transport}

  # Bytes of the head of an answer. Common servers allow 8 KiB to a client.
  @longest_head 16 * 1024

  # Answers before the last one.
  @most_interim 8

  @type headers :: [{String.t(), String.t()}]
  @type answer :: {status :: pos_integer(), phrase :: binary(), headers(), rest :: binary()}

  @typedoc "A proxy: where it is, and the value of `proxy-authorization`."
  @type proxy :: %{host: String.t(), port: :inet.port_number(), authorization: nil | String.t()}

  @doc "Parses `http://user:pass@host:port`."
  @spec proxy(term()) :: {:ok, proxy()} | :error
  def proxy(url) when is_binary(url) do
    with {:ok, %URI{scheme: "http", host: host, path: path, query: nil, fragment: nil} = uri}
         when is_binary(host) and host != "" and path in [nil, "", "/"] <- URI.new(url),
         true <- uri.port in 1..65_535 do
      {:ok, %{host: host, port: uri.port, authorization: authorization(uri.userinfo)}}
    else
      _other -> :error
    end
  end

  def proxy(_other), do: :error

  defp authorization(nil), do: nil

  defp authorization(userinfo) do
    [user | password] = userinfo |> String.split(":", parts: 2) |> Enum.map(&URI.decode/1)
    basic(user, Enum.join(password))
  end

  @doc "The value of a header that logs in (RFC 7617). There the user has no colon."
  @spec basic(String.t(), String.t()) :: String.t()
  def basic(user, password), do: "Basic " <> Base.encode64(user <> ":" <> password)

  @doc "Asks a proxy for a tunnel to `authority`, a host and a port."
  @spec tunnel(:gen_tcp.socket(), proxy(), String.t(), Deadline.t()) ::
          :ok | {:error, atom() | {:proxy_refused, String.t()}}
  def tunnel(socket, proxy, authority, deadline) do
    login = if proxy.authorization, do: [{"proxy-authorization", proxy.authorization}], else: []

    case request(socket, ["CONNECT ", authority], [{"host", authority} | login], deadline) do
      {:ok, {status, _phrase, _headers, ""}} when status in 200..299 ->
        :ok

      {:ok, {status, phrase, _headers, _rest}} ->
        {:error, {:proxy_refused, "#{status} #{phrase}"}}

      {:error, :no_http} ->
        {:error, {:proxy_refused, "its answer is no HTTP"}}

      {:error, reason} ->
        {:error, reason}
    end
  end

  @doc "The host and the port as a `host` header has them, without a port that is the default."
  @spec authority(String.t(), :inet.port_number(), nil | :inet.port_number()) :: String.t()
  def authority(host, port, default \\ nil) do
    host = if String.contains?(host, ":"), do: "[#{host}]", else: host
    if port == default, do: host, else: "#{host}:#{port}"
  end

  @doc "Sends a request, and reads the head of the answer, with what has come behind it."
  @spec request(Transport.socket(), iodata(), headers(), Deadline.t()) ::
          {:ok, answer()} | {:error, :no_http | term()}
  def request(socket, target, headers, deadline) do
    lines = for {name, value} <- headers, do: [name, ": ", value, "\r\n"]
    transport = Transport.of(socket)

    with :ok <- transport.send(socket, [target, " HTTP/1.1\r\n", lines, "\r\n"]),
         do: receive_answer({socket, transport, deadline}, "", @most_interim)
  end

  # Answers such as 103 (Early Hints) announce another one (RFC 9110, 15.2).
  defp receive_answer(from, read, interim) do
    with {:ok, head, rest} <- receive_head(from, read) do
      case parse(head, rest) do
        {:ok, {status, _phrase, _headers, rest}} when status in 102..199 or status == 100 ->
          if interim > 0, do: receive_answer(from, rest, interim - 1), else: {:error, :no_http}

        answer ->
          answer
      end
    end
  end

  defp receive_head({socket, transport, deadline} = from, read) do
    case :binary.split(read, "\r\n\r\n") do
      [head, rest] when byte_size(head) <= @longest_head ->
        {:ok, head <> "\r\n\r\n", rest}

      [read] when byte_size(read) <= @longest_head ->
        with {:ok, more} <- transport.recv(socket, 0, Deadline.left(deadline)),
             do: receive_head(from, read <> more)

      _too_long ->
        {:error, :no_http}
    end
  end

  defp parse(head, rest) do
    with {:ok, {:http_response, {1, _minor}, status, phrase}, lines} <-
           :erlang.decode_packet(:http_bin, head, []),
         {:ok, headers} <- headers(lines, []) do
      {:ok, {status, phrase, headers, rest}}
    else
      _other -> {:error, :no_http}
    end
  end

  defp headers(lines, headers) do
    case :erlang.decode_packet(:httph_bin, lines, []) do
      {:ok, {:http_header, _length, name, _reserved, value}, lines} ->
        headers(lines, [{name |> to_string() |> String.downcase(), value} | headers])

      {:ok, :http_eoh, ""} ->
        {:ok, Enum.reverse(headers)}

      _other ->
        :error
    end
  end
end
