defmodule Barytherium.Connection.TlsSocket do
  @moduledoc false
  # A TLS connection over a `:gen_tcp` socket. The native side encrypts and decrypts, and this module
  # moves the bytes. The receive loop reads from the descriptor itself.
  #
  # Records have to be sent in the order in which they were encrypted, so only one process may write at
  # a time. In a `Barytherium.Network` this is the writer.

  alias Barytherium.Connection.Deadline
  alias Barytherium.Native

  # Encrypting this much takes 0.1 ms at most, with any cipher.
  @inline_max 64 * 1024

  @enforce_keys [:socket, :tls]
  defstruct [:socket, :tls]

  @type t :: %__MODULE__{socket: :gen_tcp.socket(), tls: Native.tls()}

  @typedoc "In the form of an error of `:ssl`."
  @type error :: atom() | {:tls_alert, {atom(), iodata()}}

  @doc """
  Does the handshake on an open socket with the server `name`, until `deadline`. Closes the socket if
  it fails.
  """
  @spec handshake(:gen_tcp.socket(), Native.tls_settings(), String.t(), Deadline.t()) ::
          {:ok, t()} | {:error, error()}
  def handshake(socket, settings, name, deadline) do
    result =
      with {:ok, handshake} <- open(settings, name),
           do: continue(socket, handshake, "", deadline)

    with {:error, _reason} <- result, do: :gen_tcp.close(socket)
    result
  end

  defp open(settings, name) do
    with {:error, failure} <- Native.tls_open(settings, name), do: {:error, {:tls_alert, failure}}
  end

  defp continue(socket, handshake, bytes, deadline) do
    {state, records} = Native.tls_handshake(handshake, bytes)
    sent = send_records(socket, records)

    case {state, sent} do
      {{:established, tls}, :ok} ->
        {:ok, %__MODULE__{socket: socket, tls: tls}}

      {{:established, _tls}, error} ->
        error

      {:continue, :ok} ->
        with {:ok, bytes} <- :gen_tcp.recv(socket, 0, Deadline.left(deadline)),
             do: continue(socket, handshake, bytes, deadline)

      {failure, _sent} when is_tuple(failure) ->
        {:error, {:tls_alert, failure}}

      {_state, error} ->
        error
    end
  end

  @doc "Receives as `:gen_tcp.recv/3` does."
  @spec recv(t(), non_neg_integer(), timeout()) :: {:ok, binary()} | {:error, error()}
  def recv(connection, length, timeout), do: read(connection, "", length, Deadline.in_ms(timeout))

  defp read(%{socket: socket, tls: tls} = connection, bytes, length, deadline) do
    case Native.tls_read(tls, bytes, length) do
      {:ok, data} ->
        {:ok, data}

      :more ->
        with {:ok, bytes} <- :gen_tcp.recv(socket, 0, Deadline.left(deadline)),
             do: read(connection, bytes, length, deadline)

      :closed ->
        {:error, :closed}

      failure ->
        {:error, {:tls_alert, failure}}
    end
  end

  @doc "Sends `data`, and the records that the reading side has left to be sent."
  @spec send(t(), iodata()) :: :ok | {:error, error()}
  def send(%{socket: socket, tls: tls}, data) do
    case encrypt(tls, data, IO.iodata_length(data)) do
      {reason, records} ->
        send_records(socket, records)
        {:error, reason}

      records ->
        send_records(socket, records)
    end
  end

  defp encrypt(tls, data, length) when length <= @inline_max do
    with :busy <- Native.tls_encrypt(tls, data), do: Native.tls_encrypt_large(tls, data)
  end

  defp encrypt(tls, data, _length), do: Native.tls_encrypt_large(tls, data)

  defp send_records(_socket, ""), do: :ok
  defp send_records(socket, records), do: :gen_tcp.send(socket, records)

  @doc "Sends the alert `close_notify` (RFC 8446, 6.1) and closes the socket for writing."
  @spec shutdown(t(), :write) :: :ok | {:error, error()}
  def shutdown(%{socket: socket, tls: tls}, :write) do
    with :ok <- send_records(socket, Native.tls_close(tls)), do: :gen_tcp.shutdown(socket, :write)
  end

  @doc """
  Sends the alert `close_notify`, unless it was sent, and closes the socket. Both wait for a peer that
  does not read.
  """
  @spec close(t()) :: :ok
  def close(%{socket: socket, tls: tls}) do
    send_records(socket, Native.tls_close(tls))
    :gen_tcp.close(socket)
  end

  @doc "Makes `pid` the owner."
  @spec controlling_process(t(), pid()) :: :ok | {:error, atom()}
  def controlling_process(%{socket: socket}, pid), do: :gen_tcp.controlling_process(socket, pid)
end
