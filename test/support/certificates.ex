defmodule Barytherium.Certificates do
  @moduledoc """
  Certificates of an authority that only one test uses.
  """

  # The extension subjectAltName (RFC 5280, 4.2.1.6).
  @names {2, 5, 29, 17}
  @key {:rsa, 2048, 65_537}

  @doc """
  `%{server: options, client: options, cacerts: certificates}`: TLS options for the server, TLS
  options with which a client of the same authority presents its certificate, and the certificates
  that a client has to trust.

  `names` are the names of the server, as strings or IP addresses. The option `:validity` is a tuple of
  two dates.
  """
  def make(names, opts \\ []) do
    validity = Keyword.take(opts, [:validity])
    common = [digest: :sha256, key: @key]
    server = common ++ [extensions: [names(names)]] ++ validity

    %{server_config: server, client_config: client} =
      :public_key.pkix_test_data(%{
        server_chain: %{root: common, intermediates: [], peer: server},
        client_chain: %{root: common, intermediates: [], peer: common}
      })

    %{
      server: Keyword.take(server, [:cert, :key, :cacerts]),
      client: Keyword.take(client, [:cert, :key]),
      cacerts: client[:cacerts]
    }
  end

  @doc "Writes the same into PEM files in `directory`. Returns options with their paths."
  def write!(%{server: server, client: client, cacerts: cacerts}, directory) do
    %{
      server: files(server, directory, "server"),
      client: files(client, directory, "client"),
      cacertfile:
        pem(directory, "ca.pem", Enum.map(cacerts, &{:Certificate, &1, :not_encrypted})),
      client_cacertfile:
        pem(
          directory,
          "client_ca.pem",
          Enum.map(server[:cacerts], &{:Certificate, &1, :not_encrypted})
        )
    }
  end

  defp files(options, directory, name) do
    {type, key} = options[:key]

    [
      certfile: pem(directory, "#{name}.pem", [{:Certificate, options[:cert], :not_encrypted}]),
      keyfile: pem(directory, "#{name}_key.pem", [{type, key, :not_encrypted}])
    ]
  end

  defp pem(directory, name, entries) do
    path = Path.join(directory, name)
    File.write!(path, :public_key.pem_encode(entries))
    path
  end

  defp names(names), do: {:Extension, @names, false, Enum.map(names, &name/1)}
  defp name(name) when is_binary(name), do: {:dNSName, to_charlist(name)}
  defp name(address), do: {:iPAddress, address |> Tuple.to_list() |> :binary.list_to_bin()}
end
